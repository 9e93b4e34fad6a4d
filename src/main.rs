//! The `ringress` command.

fn main() {}
