//! What tests stand on: a scripted model server and a client that sees raw bytes.

pub mod raw;
pub mod scripted;
