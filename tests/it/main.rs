//! All integration tests, in one binary because linking one is quicker than linking many.

mod counts;
