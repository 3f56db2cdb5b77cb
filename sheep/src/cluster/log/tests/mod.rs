//! Whole logs in one process.
