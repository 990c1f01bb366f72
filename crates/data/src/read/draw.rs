//! A sample of the documents of a plan.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Record, Records};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::job::{MaxBad, Watch};
use crate::plan::{Chunk, Plan};

/// Documents that were drawn, and what they were drawn from.
#[derive(Debug, Default)]
pub struct Drawn {
    /// The texts, in an order that hangs on their places alone.
    pub texts: Vec<String>,
    /// Documents in all.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Bad records that were passed over.
    pub bad: u64,
}

/// A document under the number by which it is drawn.
type Ticket = ([u8; 8], String, String);

/// Draws documents with at most `bytes` of text together, but one at least. Everything is read once, on rayon's threads; memory is
/// what is drawn, times threads. Which documents are drawn hangs on their places in the input alone.
///
/// # Errors
/// If an input cannot be read, there is more bad input than allowed, or the watcher wants to stop.
pub fn draw(fs: &dyn Fs, plan: &Plan, bytes: u64, max_bad: MaxBad, watch: &dyn Watch) -> Result<Drawn> {
    let (mut tickets, drawn) = plan
        .chunks
        .par_iter()
        .map(|chunk| draw_chunk(fs, plan, chunk, bytes, watch))
        .try_reduce(Default::default, |(mut tickets, a), (more, b)| {
            tickets.extend(more);
            first(&mut tickets, bytes);
            let drawn = Drawn {
                texts: Vec::new(),
                documents: a.documents + b.documents,
                bytes: a.bytes + b.bytes,
                bad: a.bad + b.bad,
            };
            Ok((tickets, drawn))
        })?;
    let records = drawn.documents + drawn.bad;
    if max_bad.exceeded(records, drawn.bad, true) {
        let most = max_bad.to_string();
        return Err(Error::TooBad { last: String::new(), bad: drawn.bad, records, most });
    }
    tickets.sort();
    let keep = fitting(&tickets, bytes).max(1);
    Ok(Drawn { texts: tickets.into_iter().take(keep).map(|(_, _, text)| text).collect(), ..drawn })
}

fn draw_chunk(
    fs: &dyn Fs,
    plan: &Plan,
    chunk: &Chunk,
    bytes: u64,
    watch: &dyn Watch,
) -> Result<(Vec<Ticket>, Drawn)> {
    let mut drawn = Drawn::default();
    let mut tickets: Vec<Ticket> = Vec::new();
    let mut held = 0;
    for record in Records::new(fs, plan, chunk) {
        if watch.stopped() {
            return Err(Error::Stopped);
        }
        let Record::Document(document) = record? else {
            drawn.bad += 1;
            continue;
        };
        drawn.documents += 1;
        drawn.bytes += document.text.len() as u64;
        held += document.text.len() as u64;
        let place = document.at.to_string();
        let digest = Sha256::digest(&place);
        tickets.push((std::array::from_fn(|i| digest[i]), place, document.text));
        if held / 2 > bytes {
            held = first(&mut tickets, bytes);
        }
    }
    first(&mut tickets, bytes);
    watch.advance(chunk.bytes);
    Ok((tickets, drawn))
}

/// Keeps the lowest tickets as long as their texts fit, and the one at which they do not any more: it must stop the tickets of other
/// parts too. Returns the bytes of all these.
fn first(tickets: &mut Vec<Ticket>, bytes: u64) -> u64 {
    tickets.sort();
    tickets.truncate(fitting(tickets, bytes) + 1);
    tickets.iter().map(|(_, _, text)| text.len() as u64).sum()
}

/// How many tickets fit, of sorted ones.
fn fitting(tickets: &[Ticket], bytes: u64) -> usize {
    let mut sum = 0;
    let fits = |(_, _, text): &&Ticket| {
        sum += text.len() as u64;
        sum <= bytes
    };
    tickets.iter().take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Quiet;
    use crate::job::tests::{corpus, options};
    use crate::plan::{Input, ReadOptions};

    #[test]
    fn the_sample_hangs_on_the_input_alone() {
        let fs = corpus();
        let draw_with = |options: &ReadOptions, bytes, threads| {
            let plan = Plan::new(&fs, &[Input::new("/in")], options).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| draw(&fs, &plan, bytes, MaxBad::Count(3), &Quiet)).unwrap()
        };
        let all = draw_with(&options(), u64::MAX, 1);
        assert_eq!((all.documents, all.texts.len(), all.bad), (622, 622, 3));
        for bytes in [1, 1000, 20_000, all.bytes - 1] {
            let one = draw_with(&options(), bytes, 1);
            let size: usize = one.texts.iter().map(String::len).sum();
            assert!(one.texts.len() == 1 || size as u64 <= bytes, "{size} of {bytes}");
            assert!(bytes < 1000 || size as u64 > bytes / 2, "{size} of {bytes}");
            let two = draw_with(&options(), bytes, 2);
            let coarse = draw_with(&ReadOptions::default(), bytes, 2);
            assert!(one.texts == two.texts && one.texts == coarse.texts, "{bytes}");
        }
        let plan = Plan::new(&fs, &[Input::new("/in")], &options()).unwrap();
        assert!(matches!(draw(&fs, &plan, 1, MaxBad::Count(2), &Quiet), Err(Error::TooBad { .. })));
    }
}
