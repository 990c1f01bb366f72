//! The operations of the model, forward and backward of each on one screen.
//!
//! An operation never fails: shapes were checked when the model was opened. A new one costs a reference
//! kernel, a case list, an error bound and a backward.

mod basic;
mod conv;
mod linear;
mod loss;
mod norm;
mod scan;
mod shared;

pub use scan::MambaSizes;
pub(crate) use scan::ScanParams;
pub use shared::AttentionSizes;
