//! What is wrong with an answer while it streams: does it give its system prompt away ([`leak`]), has it fallen
//! apart ([`degenerate`]), and how good does it look in the end ([`quality`]).
//!
//! Nothing here knows requests, policies or sockets, keeps an answer, or does I/O. Everything takes a stream in
//! pieces cut anywhere and tells the same whatever the pieces.

mod boilerplate;
mod coded;
mod control;
pub mod degenerate;
#[cfg(test)]
mod degenerate_tests;
mod fill;
mod fold;
mod grams;
pub mod leak;
#[cfg(test)]
mod leak_tests;
mod loops;
mod odd;
mod patterns;
pub mod quality;
mod reader;
mod scanner;
mod secretive;
mod shingles;
#[cfg(test)]
mod speed_tests;
mod twins;
mod words;
