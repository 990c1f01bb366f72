//! What a held-out text costs without a model: the figures that a trained one is compared with.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::error::{Error, Result};
use crate::shards::Shard;

/// Bits per byte of `held_out` under a unigram model: each token by its frequency in the `train` shards, with one added
/// to every count so that unseen tokens cost something finite. The first token of each document is not predicted, as
/// in training ([`crate::eval_rows`]).
///
/// # Errors
/// If the shards do not fit together, a shard cannot be read, or `held_out` does not know its source bytes.
pub fn unigram_bits_per_byte(train: &[&Shard], held_out: &Shard) -> Result<f64> {
    let vocab = held_out.vocab_size() as usize;
    let mut counts = vec![1u64; vocab];
    for shard in train {
        if shard.vocab_size() as usize != vocab {
            return Err(Error::Mixture(format!(
                "shards {} and {} have different vocabularies; tokenise them with one tokenizer",
                shard.prefix().display(),
                held_out.prefix().display()
            )));
        }
        for_each_target(shard, |token| counts[token as usize] += 1)?;
    }
    let total = counts.iter().sum::<u64>() as f64;
    let mut bits = 0.0;
    for_each_target(held_out, |token| bits -= (counts[token as usize] as f64 / total).log2())?;
    match held_out.manifest().source_bytes {
        0 => {
            let prefix = held_out.prefix().display();
            Err(Error::TooLittle(format!("shard {prefix} stands for no text; bits per byte are not defined")))
        }
        bytes => Ok(bits / bytes as f64),
    }
}

fn for_each_target(shard: &Shard, mut see: impl FnMut(u32)) -> Result<()> {
    for doc in 0..shard.documents() {
        shard.doc(doc)?.into_iter().skip(1).for_each(&mut see);
    }
    Ok(())
}

/// Bits per byte of texts under `gzip -9`, all in one stream, so that later texts may refer to earlier ones.
/// The DEFLATE is a pure Rust one; zlib's own level 9 gives 0.3 % less on source code and the same on prose.
///
/// # Errors
/// If there is no text.
pub fn gzip_bits_per_byte<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<f64> {
    let path = std::path::Path::new("gzip stream in memory");
    let mut bytes = 0u64;
    let mut encoder = GzEncoder::new(Length(0), Compression::best());
    for text in texts {
        bytes += text.len() as u64;
        encoder.write_all(text.as_bytes()).map_err(Error::io(path, "compress"))?;
    }
    let compressed = encoder.finish().map_err(Error::io(path, "compress"))?;
    if bytes == 0 {
        return Err(Error::TooLittle("no text to compress".into()));
    }
    Ok(compressed.0 as f64 * 8.0 / bytes as f64)
}

/// Counts what is written to it.
struct Length(u64);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::fs::FaultFs;
    use crate::shards::{ShardSpec, ShardWriter};

    fn shard(vocab_size: u32, documents: &[&[u32]], source_bytes: u64) -> Shard {
        let fs = Arc::new(FaultFs::new());
        let spec = ShardSpec { vocab_size, tokenizer_sha256: String::new() };
        let mut writer = ShardWriter::create(fs.clone(), Path::new("/x"), spec).unwrap();
        for document in documents {
            writer.push(document, source_bytes).unwrap();
        }
        writer.finish().unwrap();
        Shard::open(fs, Path::new("/x")).unwrap()
    }

    #[test]
    fn unigram_by_hand() {
        // Counts of targets plus one: token 2 four times, token 3 twice, 0 and 1 once each, of 8.
        let train = shard(4, &[&[1, 2, 2, 3], &[0, 2]], 1);
        let held_out = shard(4, &[&[1, 2, 3, 0]], 10);
        let bits = unigram_bits_per_byte(&[&train], &held_out).unwrap();
        assert!((bits - (1.0 + 2.0 + 3.0) / 10.0).abs() < 1e-12, "{bits}");
        assert!(unigram_bits_per_byte(&[&shard(5, &[&[1]], 1)], &held_out).is_err());
        assert!(unigram_bits_per_byte(&[&train], &shard(4, &[&[1, 2]], 0)).is_err());
    }

    #[test]
    fn gzip_finds_repetition_across_texts() {
        let mut rng = crate::rng::Rng::keyed("test", "", &[1]);
        let text: String = (0..2_000).map(|_| char::from(32 + rng.below(90) as u8)).collect();
        let once = gzip_bits_per_byte([text.as_str()]).unwrap();
        let twice = gzip_bits_per_byte([text.as_str(), text.as_str()]).unwrap();
        assert!(once > 6.0 && twice < 0.6 * once, "{once} {twice}");
        assert!(gzip_bits_per_byte([""]).is_err());
    }
}
