//! The last resort against a panic of the `tokenizers` library: it becomes an error and prints nothing.
//!
//! [`super::validate`] refuses the files that are known to make the library panic, so this is for those that are not known.
//! It needs `panic = "unwind"`, the default.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

static HOOK: Once = Once::new();

/// Runs `f`; a panic inside it becomes its message.
///
/// A panic hook is a property of the process, so one is installed once, for good, and asks a flag of the thread whether to
/// pass the panic on to the hook that stood before. Panics outside `f` are reported as ever. What `f` touches must not be
/// used after an error unless it holds no half-made change: a tokenizer that is being loaded is dropped, and encoding and
/// decoding only change a cache whose entries are complete.
pub(super) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // Installing a hook while the thread is already panicking would abort the process.
    if !std::thread::panicking() {
        HOOK.call_once(|| {
            let previous = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if !QUIET.try_with(Cell::get).unwrap_or(false) {
                    previous(info);
                }
            }));
        });
    }
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    QUIET.set(before);
    result.map_err(|payload| format!("it panicked: {}", super::one_line(message(payload.as_ref()))))
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(catch(|| 3), Ok(3));
        assert_eq!(catch(|| -> u8 { panic!("static") }), Err("it panicked: static".to_owned()));
        let index = std::hint::black_box(7);
        let error = catch(|| [1, 2, 3][index]).unwrap_err();
        assert!(error.starts_with("it panicked: index out of bounds"), "{error}");
        assert!(!QUIET.get());
    }

    #[test]
    fn nesting_keeps_the_outer_one_quiet() {
        let outer = catch(|| {
            let inner = catch(|| -> u8 { panic!("inner") });
            assert!(inner.is_err() && QUIET.get());
        });
        assert!(outer.is_ok() && !QUIET.get());
    }
}
