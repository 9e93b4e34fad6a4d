//! Decisions without I/O: plain functions and structs that are handed their time and randomness.

pub mod admission;
mod atomic;
pub mod balance;
pub mod breaker;
pub mod bucket;
pub mod cidr;
pub mod clients;
pub mod health;
pub mod outlier;
pub mod pace;
pub mod restart;
pub mod retry;
pub mod roster;
pub mod routes;
pub mod share;
mod window;
