//! Checkpoint folder to model and back.

use std::sync::Arc;

use zamba_kernels::{Device, Dtype};

use crate::checkpoint::{Checkpoint, LoadError};
use crate::config::FileDtype;
use crate::model::Zamba;

/// Values converted at a time, so that loading needs little memory beside the weights.
const CHUNK: usize = 1 << 20;

impl Zamba {
    /// Loads the weights of `checkpoint`. Quantised matrices stay as they are; others are stored as `format`,
    /// by default as in the file, where f16 becomes f32. `progress` receives the bytes of weights read so far.
    ///
    /// # Errors
    /// If a tensor cannot be read or holds values that are not finite.
    pub fn load(
        checkpoint: &Checkpoint,
        dev: Arc<dyn Device>,
        format: Option<Dtype>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, LoadError> {
        let format = format.unwrap_or(match checkpoint.config.dtype {
            FileDtype::Bf16 => Dtype::Bf16,
            FileDtype::F16 | FileDtype::F32 | FileDtype::U8 => Dtype::F32,
        });
        let (mut host, mut bytes) = (vec![0.0; CHUNK], vec![]);
        let mut done = 0;
        let d = dev.clone();
        Zamba::build(checkpoint.config.clone(), dev, format, |spec, buf| {
            if buf.dtype().is_quantised() {
                bytes.resize(4 * CHUNK, 0);
                for at in (0..buf.bytes()).step_by(4 * CHUNK) {
                    let part = &mut bytes[..(4 * CHUNK).min(buf.bytes() - at)];
                    checkpoint.read_quants(&spec.name, at, part)?;
                    d.upload_bytes(buf, at, part);
                    done += part.len() as u64;
                    progress(done);
                }
                return Ok(());
            }
            let size = checkpoint.dtype(&spec.name).size() as u64;
            for at in (0..spec.len()).step_by(CHUNK) {
                let part = &mut host[..CHUNK.min(spec.len() - at)];
                checkpoint.read_f32(&spec.name, at, part)?;
                d.upload(buf, at, part);
                done += part.len() as u64 * size;
                progress(done);
            }
            Ok(())
        })
    }
}
