//! What each token adds to a text, in bytes: for those who must know which tokens spell a given text.

use tokenizers::Decoder;

use super::stream::{Stage, add_stages, byte_of, push_byte_level};
use super::{IdKind, Tokenizer, TokenizerError, quiet};

impl Tokenizer {
    /// By id, the bytes that a token adds in the middle of a text; empty for ids that the vocabulary lacks. Special
    /// tokens stand as they are written.
    ///
    /// # Errors
    /// [`TokenizerError::Context`] if what a token adds depends on its neighbours, as in decoders that put spaces
    /// between words.
    pub fn token_bytes(&self) -> Result<Vec<Vec<u8>>, TokenizerError> {
        let mut stages = Vec::new();
        match self.inner.library.get_decoder() {
            Some(decoder) => add_stages(decoder, &mut false, &mut stages),
            None => return Err(TokenizerError::Context),
        }
        if self.inner.clean_up {
            return Err(TokenizerError::Context);
        }
        (0..=self.max_id()).map(|id| self.bytes_of(id, &stages)).collect()
    }

    fn bytes_of(&self, id: u32, stages: &[Stage]) -> Result<Vec<u8>, TokenizerError> {
        let piece = self.id_to_piece(id).unwrap_or_default();
        match self.inner.kind(id) {
            IdKind::Unknown => Ok(Vec::new()),
            IdKind::Special => Ok(piece.into_bytes()),
            IdKind::Ordinary => ordinary(piece, stages),
        }
    }
}

fn ordinary(piece: String, stages: &[Stage]) -> Result<Vec<u8>, TokenizerError> {
    let mut text = piece;
    for stage in stages {
        match stage {
            Stage::Each(decoder) => {
                let decoded = quiet::catch(|| decoder.decode_chain(vec![std::mem::take(&mut text)]));
                let decoded = decoded.and_then(|result| result.map_err(super::one_line));
                text = decoded.map_err(|message| TokenizerError::Decode { message })?.concat();
            }
            Stage::Metaspace { replacement, .. } => text = text.replace(*replacement, " "),
            Stage::ByteFallback { .. } => {
                if let Some(byte) = byte_of(&text) {
                    return Ok(vec![byte]);
                }
            }
            Stage::ByteLevel { .. } => {
                let mut bytes = Vec::new();
                push_byte_level(&mut bytes, &text);
                return Ok(bytes);
            }
            // Only the beginning of a text is changed by it.
            Stage::Head { .. } => {}
            Stage::WordPiece { .. }
            | Stage::Suffix { .. }
            | Stage::Spaced { .. }
            | Stage::Whole { .. }
            | Stage::CleanUp { .. } => return Err(TokenizerError::Context),
        }
    }
    Ok(text.into_bytes())
}
