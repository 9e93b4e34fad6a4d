//! Decisions without I/O: plain functions and structs that are handed their time and randomness.

pub mod admission;
pub mod balance;
