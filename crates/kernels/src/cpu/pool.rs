//! The device's own threads.
//!
//! A parallel region costs two atomic operations per worker where the workers are still awake: a worker
//! spins for a bounded time after its last region, then parks. Nothing is allocated per region. A worker
//! that wakes too late simply misses the region; the caller never waits for one that has not entered.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use super::split::Split;

/// The region is open to workers.
const OPEN: usize = 1;
/// The pool is being dropped.
const STOP: usize = 2;
/// One worker inside the region.
const ENTERED: usize = 4;

/// Rounds of waiting before a worker parks: some 50 to 150 µs, longer than the serial stretches between
/// two kernels of one token. Miri lets threads take turns, so there all of it would be waiting.
const SPINS: usize = if cfg!(miri) { 64 } else { 4_000 };

/// Orders what this thread wrote past the caches before all that it writes from now on, and so before its word that
/// its chunks are done. Other writes need no such thing.
fn settle() {
    // Miri does not know the instruction, and writes nothing past the caches.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: every x86-64 processor has the instruction, and it only orders writes.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Worker threads, and the caller, which takes part in every region.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held while a region runs. Callers that find it taken run their region alone.
    turn: Mutex<()>,
}

struct Worker {
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

struct Shared {
    /// [`OPEN`], [`STOP`] and the number of workers inside, in units of [`ENTERED`].
    gate: Line<AtomicUsize>,
    /// Next chunk of the region.
    cursor: Line<AtomicUsize>,
    job: UnsafeCell<Job>,
    /// Per worker, whether it sleeps or is about to.
    parked: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: all fields but `job` are `Sync` themselves. `job` is written only by the holder of `turn` while
// the gate is closed with nobody inside, and read only by workers that entered through the open gate; the
// gate's atomic operations order the two.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure, which may be called from any thread.
unsafe impl Send for Shared {}

/// Keeps two atomics out of one cache line.
#[repr(align(128))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Job {
    /// Borrowed from the caller of the region, who does not return before all workers have left.
    body: *const (dyn Fn(usize) + Sync),
    chunks: usize,
}

impl Pool {
    /// A pool in which `threads` threads work, the caller included.
    ///
    /// # Panics
    /// If the system refuses a thread.
    pub(super) fn new(threads: usize) -> Pool {
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            gate: Line(AtomicUsize::new(0)),
            cursor: Line(AtomicUsize::new(0)),
            job: UnsafeCell::new(Job { body: &|_: usize| {}, chunks: 0 }),
            parked: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        // Spinning only pays while every thread has a core of its own.
        let cores = thread::available_parallelism().map_or(1, |n| n.get());
        let spins = if threads <= cores { SPINS } else { SPINS / 64 };
        let spawn = |index: usize| {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(format!("kernels-{}", index + 1));
            let handle =
                builder.spawn(move || shared.work(index, spins)).expect("the system refused a thread");
            Worker { thread: handle.thread().clone(), handle: Some(handle) }
        };
        let workers = (0..workers).map(spawn).collect();
        Pool { shared, workers, turn: Mutex::new(()) }
    }

    /// Threads that take part in a region, the caller included.
    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` once with each of `0 .. chunks`, in parallel and in no particular order.
    ///
    /// Runs on the calling thread alone when there is one chunk, one thread, or another region in
    /// progress, such as the one that this call was made from.
    ///
    /// # Panics
    /// With the first panic of a `body`, once every thread has left the region.
    pub(super) fn run(&self, chunks: usize, body: impl Fn(usize) + Sync) {
        if chunks > 1 && !self.workers.is_empty() {
            let turn = match self.turn.try_lock() {
                Ok(turn) => Some(turn),
                // The lock guards no data, and a panic is raised only after its region has ended.
                Err(std::sync::TryLockError::Poisoned(e)) => Some(e.into_inner()),
                Err(std::sync::TryLockError::WouldBlock) => None,
            };
            if let Some(turn) = turn {
                let panic = self.region(chunks, &body);
                drop(turn);
                return panic.map_or((), |p| resume_unwind(p));
            }
        }
        (0..chunks).for_each(body);
        settle();
    }

    /// Calls `body` once with each piece of `parts` and its number; see [`run`](Pool::run). If not
    /// `parallel`, on the calling thread alone.
    pub(super) fn split<P: Split>(&self, parallel: bool, parts: P, body: impl Fn(usize, P::Piece) + Sync) {
        let call = |index: usize| {
            // SAFETY: each index below `count` comes here once, and `parts`, which borrows what the pieces
            // point into, lives until the calls below are over.
            body(index, unsafe { parts.piece(index) });
        };
        if parallel {
            self.run(parts.count(), call);
        } else {
            (0..parts.count()).for_each(call);
            settle();
        }
    }

    /// One region; the caller holds `turn`.
    fn region(&self, chunks: usize, body: &(dyn Fn(usize) + Sync)) -> Option<Box<dyn Any + Send>> {
        let shared = &*self.shared;
        // SAFETY: this changes only the lifetime. The gate is closed and empty before and after this
        // function, so no worker holds the pointer once it has returned.
        let body: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(body) };
        // SAFETY: nobody reads `job` while the gate is closed and empty, and `turn` excludes other writers.
        unsafe { *shared.job.get() = Job { body, chunks } };
        shared.cursor.0.store(0, Ordering::Relaxed);
        // Sequentially consistent, as is the worker's `parked` flag and its look at the gate after it: one
        // of the two sees the other, so no worker sleeps through an open gate that it was to be woken for.
        shared.gate.0.fetch_or(OPEN, Ordering::SeqCst);
        self.wake(chunks - 1);
        shared.drain(body, chunks);
        shared.wait_until_empty();
        shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Wakes up to `wanted` sleeping workers.
    fn wake(&self, wanted: usize) {
        for (worker, parked) in self.workers.iter().zip(&self.shared.parked).take(wanted) {
            if parked.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.gate.0.fetch_or(STOP, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            // A worker catches the panics of its jobs and has no other way to fail.
            let _ = worker.handle.take().map(JoinHandle::join);
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn work(&self, index: usize, spins: usize) {
        loop {
            let gate = self.wait_for_gate(index, spins);
            if gate & STOP != 0 {
                return;
            }
            let entered = gate + ENTERED;
            if self.gate.0.compare_exchange(gate, entered, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: the exchange found the gate open, so the job was written before it, and it stays as
            // it is, and what it borrows alive, until the subtraction below.
            let job = unsafe { *self.job.get() };
            // SAFETY: as above.
            self.drain(unsafe { &*job.body }, job.chunks);
            self.gate.0.fetch_sub(ENTERED, Ordering::Release);
        }
    }

    /// Waits until the gate is open or the pool is dropped, at first awake and then asleep.
    fn wait_for_gate(&self, index: usize, spins: usize) -> usize {
        loop {
            for _ in 0..spins {
                let gate = self.gate.0.load(Ordering::Relaxed);
                if gate & (OPEN | STOP) != 0 {
                    return gate;
                }
                std::hint::spin_loop();
            }
            self.parked[index].store(true, Ordering::SeqCst);
            if self.gate.0.load(Ordering::SeqCst) & (OPEN | STOP) == 0 {
                thread::park();
            }
            self.parked[index].store(false, Ordering::SeqCst);
        }
    }

    /// Runs chunks until none is left, then closes the gate. A panic ends the region early.
    fn drain(&self, body: &(dyn Fn(usize) + Sync), chunks: usize) {
        loop {
            let chunk = self.cursor.0.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                break;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(chunk))) {
                self.cursor.0.store(chunks, Ordering::Relaxed);
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
                break;
            }
        }
        settle();
        // Whoever gets here is inside the region, so this cannot close the gate of a later one.
        self.gate.0.fetch_and(!OPEN, Ordering::Relaxed);
    }

    /// Waits until every worker that entered has left. They may be in the middle of a chunk, or without a
    /// core when there are more threads than cores, so the wait soon yields.
    fn wait_until_empty(&self) {
        let mut spins = 0;
        while self.gate.0.load(Ordering::Acquire) >= ENTERED {
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn every_chunk_runs_exactly_once() {
        for threads in [1, 2, 3, 17] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for chunks in [0, 1, 2, 5, 100] {
                for _ in 0..50 {
                    let hits: Vec<_> = (0..chunks).map(|_| AtomicU32::new(0)).collect();
                    pool.run(chunks, |c| {
                        hits[c].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(3);
        for bad in 0..8 {
            let run = || pool.run(8, |c| assert!(c != bad, "chunk {c} failed"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("chunk {bad} failed")));
            let sum = AtomicUsize::new(0);
            pool.run(100, |c| {
                sum.fetch_add(c, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4_950);
        }
    }

    #[test]
    fn sleeping_workers_wake_and_nested_regions_run_alone() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            while !pool.shared.parked[0].load(Ordering::SeqCst) {
                thread::yield_now();
            }
            let me = thread::current().id();
            let other = AtomicBool::new(false);
            // The first chunk waits for the second, which then only the worker can run.
            pool.run(2, |c| {
                if thread::current().id() != me {
                    other.store(true, Ordering::SeqCst);
                }
                while c == 0 && thread::current().id() == me && !other.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                let inner = AtomicUsize::new(0);
                pool.run(4, |_| {
                    inner.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(inner.into_inner(), 4);
            });
            assert!(other.into_inner());
        }
    }

    #[test]
    fn callers_on_several_threads_do_not_mix() {
        let pool = Pool::new(2);
        thread::scope(|s| {
            for caller in 0..3 {
                let pool = &pool;
                s.spawn(move || {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(10, |c| {
                            sum.fetch_add(c + caller, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45 + 10 * caller);
                    }
                });
            }
        });
    }
}
