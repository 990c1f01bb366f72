//! A trainable tensor and its place in the flat buffers.

use std::sync::Arc;

use zamba_kernels::Mat;

/// A weight with its place `at .. at + len` in the flat gradient, master-weight and moment buffers.
///
/// Clones share the weight; a tape holds clones, so weights are written between passes only.
#[derive(Clone)]
pub struct Param {
    id: usize,
    at: usize,
    mat: Arc<Mat>,
}

impl Param {
    pub(crate) fn new(id: usize, at: usize, mat: Mat) -> Self {
        Param { id, at, mat: Arc::new(mat) }
    }

    /// Place in the list of tensors, [`crate::spec::tensors`].
    pub fn id(&self) -> usize {
        self.id
    }

    /// First element in the flat buffers.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The weight.
    pub fn mat(&self) -> &Mat {
        &self.mat
    }

    /// The weight, to be written.
    ///
    /// # Panics
    /// If a tape is alive, because it would differentiate through weights that are gone.
    pub fn mat_mut(&mut self) -> &mut Mat {
        Arc::get_mut(&mut self.mat).expect("weights are written between passes")
    }
}
