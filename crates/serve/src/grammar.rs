//! Grammars that new tokens must follow: JSON schemas and calls of functions, by `llguidance`.
//!
//! A grammar is compiled before its request is taken, within limits of size, work and time, and what the library does
//! not implement is an error: nothing of a grammar is ever left out.

use std::sync::Arc;
use std::time::Duration;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use zamba::tokenizer::{Tokenizer, TokenizerError};

use crate::engine::Constrain;

/// Stack for the compiler, which recurses as deep as a grammar is nested.
const STACK: usize = 64 << 20;

/// Longest time that anyone waits for a grammar. The compiler's own fuel ends its work not much later.
const PATIENCE: Duration = Duration::from_secs(10);

/// White space that JSON may have between two of its parts. Without a bound a model can go on with it for ever.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// Why a grammar cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Tokens of this tokenizer have no bytes of their own.
    #[error("{0}")]
    Tokenizer(String),
    /// The grammar is wrong, uses what is not implemented, or is too large.
    #[error("{0}")]
    Grammar(String),
    /// Compiling took too long.
    #[error("the grammar takes too long to compile; make it smaller")]
    TooSlow,
    /// The compiler's thread could not be started or died.
    #[error("the grammar compiler failed: {0}")]
    Internal(String),
}

/// What new tokens must be like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that a schema allows.
    Json(Value),
    /// A grammar in `llguidance`'s dialect of Lark.
    Lark(String),
}

/// Compiles grammars for one vocabulary. Cheap to clone.
#[derive(Clone)]
pub struct Grammars {
    factory: Arc<ParserFactory>,
    /// Grammars that are compiled at once: no more than there are processors.
    turns: Arc<Semaphore>,
}

impl Grammars {
    /// Prepares the vocabulary of `tokenizer`; `ends` are the tokens that may follow a complete text.
    ///
    /// # Errors
    /// If the tokens of this tokenizer have no bytes of their own.
    pub fn new(tokenizer: &Tokenizer, ends: &[u32]) -> Result<Self, GrammarError> {
        let words = words(tokenizer).map_err(|error| GrammarError::Tokenizer(error.to_string()))?;
        let vocab = words.len() as u32;
        // Ids beyond the tokenizer's own have no bytes, and so no place in a grammar.
        let ends: Vec<TokenId> = ends.iter().copied().filter(|&id| id < vocab).collect();
        let info = TokRxInfo::new(vocab, ends.first().copied().unwrap_or(llguidance::toktrie::INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| GrammarError::Tokenizer(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Grammars { factory: Arc::new(factory), turns: Arc::new(Semaphore::new(threads)) })
    }

    /// Compiles a grammar without holding up anyone else.
    ///
    /// # Errors
    /// If it is wrong, beyond the limits, or uses what is not implemented.
    pub async fn compile(&self, grammar: Grammar) -> Result<Rule, GrammarError> {
        match tokio::time::timeout(PATIENCE, self.compile_in_turn(grammar)).await {
            Err(_) => Err(GrammarError::TooSlow),
            Ok(result) => result,
        }
    }

    /// The turn ends with the work, not with the patience of whoever asked for it.
    async fn compile_in_turn(&self, grammar: Grammar) -> Result<Rule, GrammarError> {
        let internal = |what: &dyn std::fmt::Display| GrammarError::Internal(what.to_string());
        let turn = self.turns.clone().acquire_owned().await.map_err(|error| internal(&error))?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let grammars = self.clone();
        let work = move || {
            // Nobody waits any longer if the receiver is gone.
            let _ = sender.send(grammars.compile_here(grammar));
            drop(turn);
        };
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
        thread.spawn(work).map_err(|error| internal(&error))?;
        receiver.await.unwrap_or_else(|_| Err(internal(&"it ended without a result")))
    }

    fn compile_here(&self, grammar: Grammar) -> Result<Rule, GrammarError> {
        let grammar = match grammar {
            Grammar::Json(schema) => GrammarWithLexer::from_json_schema(with_options(schema)?),
            Grammar::Lark(text) => GrammarWithLexer::from_lark(text),
        };
        let parser = self.factory.create_parser(TopLevelGrammar::from_grammar(grammar));
        let mut matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Grammar(one_line(&error)));
        }
        // A warning says that a part of the grammar was left out.
        if let Some(warning) = matcher.grammar_warnings().first() {
            return Err(GrammarError::Grammar(one_line(warning)));
        }
        // A grammar that allows no first token at all would fail only after its request had waited.
        matcher.compute_mask().map_err(|error| GrammarError::Grammar(one_line(&error.to_string())))?;
        Ok(Rule { matcher })
    }
}

/// The library's limits, halved where its own allow more than a tenth of a second for one step.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 500_000,
        max_grammar_size: 100_000,
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// The bytes of every token; special ones, which no text spells, behind the library's mark.
fn words(tokenizer: &Tokenizer) -> Result<Vec<Vec<u8>>, TokenizerError> {
    let mut words = tokenizer.token_bytes()?;
    for (id, word) in words.iter_mut().enumerate() {
        let special = tokenizer.is_special(id as u32);
        if special && !word.is_empty() {
            word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
    }
    Ok(words)
}

/// A schema with the options that hold for all of them.
pub(crate) fn with_options(schema: Value) -> Result<Value, GrammarError> {
    let mut map = match schema {
        Value::Object(map) => map,
        Value::Bool(true) => Map::new(),
        _ => return Err(GrammarError::Grammar("a schema must be an object".to_owned())),
    };
    // It could switch off what is not implemented.
    if map.contains_key("x-guidance") {
        return Err(GrammarError::Grammar("x-guidance is not allowed in a schema; leave it out".to_owned()));
    }
    map.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITE_SPACE }));
    Ok(Value::Object(map))
}

fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("unknown cause")
        .chars()
        .take(300)
        .collect()
}

/// A compiled grammar at its beginning.
pub struct Rule {
    matcher: Matcher,
}

impl Rule {
    /// The rule for one sequence. Sequences share nothing, so that none waits for another.
    pub fn begin(&self) -> Box<dyn Constrain> {
        Box::new(Following { matcher: self.matcher.deep_clone() })
    }
}

/// A sequence that follows a grammar.
struct Following {
    matcher: Matcher,
}

impl Constrain for Following {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| one_line(&error.to_string()))?;
        let known = allowed.len().min(logits.len());
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= known || !allowed.get(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.matcher.consume_token(token).map_err(|error| one_line(&error.to_string()))
    }

    fn finished(&mut self) -> bool {
        self.matcher.is_stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vocabulary of a folder with byte-level tokens of the test data, special ones among them.
    fn tokenizer() -> Tokenizer {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../zamba/tests/data/tokenizers/byte_level");
        Tokenizer::from_dir(&root).unwrap()
    }

    async fn rule(grammar: Grammar) -> Result<Rule, GrammarError> {
        let tokenizer = tokenizer();
        Grammars::new(&tokenizer, tokenizer.eos_ids()).unwrap().compile(grammar).await
    }

    fn allowed(rule: &mut dyn Constrain, vocab: usize) -> Vec<u32> {
        let mut logits = vec![0.5; vocab];
        rule.mask(&mut logits).unwrap();
        (0..vocab as u32).filter(|&id| logits[id as usize] > f32::NEG_INFINITY).collect()
    }

    #[tokio::test]
    async fn a_text_ends_only_where_the_grammar_does() {
        let tokenizer = tokenizer();
        let ends = tokenizer.eos_ids().to_vec();
        assert!(!ends.is_empty());
        let rule = rule(Grammar::Json(json!({ "enum": [1, 12] }))).await.unwrap();
        // The model's vocabulary is larger than the tokenizer's.
        let vocab = tokenizer.max_id() as usize + 50;
        let mut sequence = rule.begin();
        let one = tokenizer.encode("1", false).unwrap()[0];
        let first = allowed(sequence.as_mut(), vocab);
        assert!(first.contains(&one));
        assert!(first.iter().all(|id| !tokenizer.is_special(*id) && *id <= tokenizer.max_id()), "{first:?}");
        sequence.accept(one).unwrap();
        let second = allowed(sequence.as_mut(), vocab);
        assert!(ends.iter().all(|end| second.contains(end)) && !sequence.finished());
        sequence.accept(tokenizer.encode("2", false).unwrap()[0]).unwrap();
        assert!(sequence.finished());
        // Another sequence of the same rule stands at its own beginning.
        assert_eq!(allowed(rule.begin().as_mut(), vocab), first);
    }

    #[tokio::test]
    async fn a_token_that_breaks_the_rule_is_an_error_from_then_on() {
        let rule = rule(Grammar::Json(json!({ "type": "boolean" }))).await.unwrap();
        let mut sequence = rule.begin();
        assert!(sequence.accept(tokenizer().encode("x", false).unwrap()[0]).is_err());
        assert!(sequence.mask(&mut [0.0; 400]).is_err());
    }

    #[tokio::test]
    async fn nothing_of_a_grammar_is_left_out() {
        for schema in [
            json!({ "type": "object", "not": { "required": ["a"] } }),
            json!({ "type": "array", "uniqueItems": true }),
            json!({ "type": "array", "contains": { "const": 1 } }),
            json!({ "if": { "const": 1 }, "then": false }),
            json!({ "type": "string", "format": "colour" }),
            json!({ "type": "string", "pattern": "(?=x)y" }),
            json!({ "type": "object", "dependentRequired": { "a": ["b"] } }),
            json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }),
            json!({ "x-guidance": { "lenient": true }, "not": {} }),
            json!({ "$ref": "#/$defs/none" }),
            json!([1]),
        ] {
            let refused = rule(Grammar::Json(schema.clone())).await;
            assert!(refused.is_err(), "{schema}");
        }
        assert!(rule(Grammar::Lark("start: (".into())).await.is_err());
    }
}
