//! The `berthd` command.
fn main() {}
