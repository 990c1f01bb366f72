//! What the linear maps of a model see on a text.

use std::rc::Rc;

use zamba::moments::Moments;
use zamba::{Batch, State, Workspace, Zamba};

use crate::{Document, EvalError, WINDOW, check_tokens};

/// Runs `model` over documents and gives the second moments of the inputs of its linear maps. Documents of
/// more than `context` tokens are cut into parts that start from zero state.
///
/// # Errors
/// As [`bits_per_byte`](crate::bits_per_byte).
///
/// # Panics
/// If `context` is 0.
pub fn calibrate<E: From<EvalError>>(
    model: &Zamba,
    context: usize,
    documents: impl IntoIterator<Item = Result<Document, E>>,
    mut progress: impl FnMut(u64) -> Result<(), E>,
) -> Result<Moments, E> {
    assert!(context > 0, "the context holds at least one token");
    let dev = model.device().clone();
    let mut state = State::new(model, 1, context);
    let (workspace, moments) = Workspace::observing(dev);
    for (number, document) in documents.into_iter().enumerate() {
        let document = document?;
        check_tokens(&document, number as u64, model.config.vocab_size)?;
        for part in document.tokens.chunks(context) {
            for (j, window) in part.chunks(WINDOW).enumerate() {
                let mut batch = Batch::default();
                batch.push(0, j * WINDOW, window);
                let mut ctx = workspace.infer(batch, Some(&mut state));
                model.forward(&mut ctx);
                progress(window.len() as u64)?;
            }
        }
    }
    drop(workspace);
    Ok(Rc::into_inner(moments).map(std::cell::RefCell::into_inner).unwrap_or_default())
}
