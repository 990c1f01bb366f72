//! What is served among others is what would have been computed alone, bit for bit, whatever happens around it.

#[path = "../../../zamba/tests/common/mod.rs"]
mod common;
mod faults;
mod readers;
mod schedules;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zamba::sampler::{Sampler, SamplerConfig};
use zamba::{Session, Zamba};
use zamba_kernels::cpu::{Cpu, Isa};
use zamba_kernels::{Device, Dtype};

use self::common::{lively, small_config};
use super::*;

const VOCAB: usize = 61;
const CONTEXT: usize = 640;

/// A small model on the fastest device of this machine.
fn model(format: Dtype) -> Zamba {
    let device: Arc<dyn Device> = Arc::new(Cpu::with(Isa::detect(), 1));
    lively(&small_config(), device, format, 3)
}

fn settings() -> Settings {
    Settings { slots: 4, context: CONTEXT, batch_tokens: 64, mixed_tokens: 16, ..Settings::default() }
}

/// Hashes of all logits that tokens were chosen from.
type Seen = Arc<Mutex<Vec<u64>>>;

/// Notes the logits that it sees and forbids nothing.
struct Probe(Seen);

impl Constrain for Probe {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        self.0.lock().unwrap().push(hash(logits));
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }

    fn finished(&mut self) -> bool {
        false
    }
}

fn hash(logits: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    logits.iter().for_each(|x| x.to_bits().hash(&mut hasher));
    hasher.finish()
}

/// What is asked, in a form that can be asked again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Ask {
    prompt: Vec<u32>,
    max_tokens: usize,
    seed: u64,
    salt: u8,
}

impl Ask {
    fn sampler(&self) -> SamplerConfig {
        let repeat_penalty = if self.seed.is_multiple_of(3) { 1.2 } else { 1.0 };
        SamplerConfig {
            temperature: 1.0,
            top_k: 0,
            repeat_penalty,
            seed: self.seed,
            ..SamplerConfig::default()
        }
    }

    fn request(&self, seen: &Seen) -> Request {
        Request {
            ends: vec![2],
            constraint: Some(Box::new(Probe(seen.clone()))),
            salt: Salt(self.salt.to_string().into()),
            tenant: self.seed % 3,
            ..Request::new(self.prompt.clone(), self.max_tokens, self.sampler())
        }
    }
}

/// Tokens and hashes of logits.
type Said = (Vec<u32>, Vec<u64>);

/// What the model says alone, by the plainest way there is.
fn solo(model: &Zamba, ask: &Ask) -> Said {
    let mut session = Session::new(model, CONTEXT);
    let mut sampler = Sampler::new(ask.sampler()).unwrap();
    ask.prompt.iter().for_each(|token| sampler.accept(*token));
    let (mut tokens, mut hashes) = (vec![], vec![]);
    let mut logits = session.feed(&ask.prompt);
    while tokens.len() < ask.max_tokens.min(CONTEXT - ask.prompt.len()) {
        hashes.push(hash(logits));
        let token = sampler.sample(logits).unwrap();
        sampler.accept(token);
        tokens.push(token);
        if token == 2 {
            break;
        }
        logits = session.feed(&[token]);
    }
    (tokens, hashes)
}

/// A request under way in a test.
struct Asked {
    ask: Ask,
    answer: Answer,
    seen: Seen,
    tokens: Vec<u32>,
    end: Option<Event>,
    /// Steps for which the reader does not come back.
    rest: usize,
}

impl Asked {
    fn new(handle: &Handle, ask: Ask) -> Self {
        let seen = Seen::default();
        let answer = handle.submit(handle.admit().unwrap(), ask.request(&seen)).unwrap();
        Asked { ask, answer, seen, tokens: vec![], end: None, rest: 0 }
    }

    fn read(&mut self) {
        while self.read_one() {}
    }

    /// Whether there was anything to read.
    fn read_one(&mut self) -> bool {
        match self.answer.try_next() {
            Some(Event::Token(token)) => self.tokens.push(token.id),
            Some(end) => self.end = Some(end),
            None => return false,
        }
        true
    }

    fn said(&self) -> Said {
        (self.tokens.clone(), self.seen.lock().unwrap().clone())
    }
}

/// Takes steps until all has ended.
fn drive(engine: &mut Engine, asked: &mut [Asked]) {
    for _ in 0..100_000 {
        assert!(engine.listen(Duration::ZERO));
        engine.step();
        asked.iter_mut().for_each(Asked::read);
        if asked.iter().all(|a| a.end.is_some()) {
            return;
        }
    }
    panic!("the engine stands still");
}

fn prompt(len: usize, seed: u64) -> Vec<u32> {
    common::tokens(len, VOCAB, seed)
}

#[test]
fn a_conversation_goes_on_from_what_was_kept() {
    let (model, reference) = (model(Dtype::F32), model(Dtype::F32));
    let (mut engine, handle) = Engine::new(model, None, settings());
    let first = Ask { prompt: prompt(150, 1), max_tokens: 20, seed: 4, salt: 0 };
    let mut asked = [Asked::new(&handle, first.clone())];
    drive(&mut engine, &mut asked);
    assert_eq!(asked[0].said(), solo(&reference, &first));
    let said = asked[0].tokens.clone();
    let fed = said.len() - 1;

    // The next turn begins with all of it, and with what the engine has not fed yet.
    let mut next = first.prompt.clone();
    next.extend(&said);
    next.extend(prompt(30, 2));
    let turn = Ask { prompt: next, max_tokens: 5, seed: 5, salt: 0 };
    let mut asked = [Asked::new(&handle, turn.clone())];
    drive(&mut engine, &mut asked);
    assert_eq!(asked[0].said(), solo(&reference, &turn));
    let Some(Event::Done(done)) = &asked[0].end else { panic!("{:?}", asked[0].end) };
    assert_eq!(done.usage.cached_tokens, 150 + fed);

    // Asked again, nothing of the prompt is computed; under another salt all of it.
    for (salt, cached) in [(0, turn.prompt.len()), (1, 0)] {
        let again = Ask { salt, ..turn.clone() };
        let before = handle.metrics().prefill_tokens.get();
        let mut asked = [Asked::new(&handle, again)];
        drive(&mut engine, &mut asked);
        assert_eq!(asked[0].said(), solo(&reference, &turn));
        let Some(Event::Done(done)) = &asked[0].end else { panic!("{:?}", asked[0].end) };
        assert_eq!(done.usage.cached_tokens, cached);
        let computed = handle.metrics().prefill_tokens.get() - before;
        assert_eq!(computed as usize, turn.prompt.len() - cached);
    }
}

#[test]
fn where_two_prompts_part_a_state_is_kept_for_the_third() {
    let reference = model(Dtype::F32);
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings());
    let trunk = prompt(101, 7);
    let mut cached = vec![];
    for branch in 0..3 {
        let prompt = [trunk.clone(), vec![10 + branch], prompt(40, 20 + u64::from(branch))].concat();
        let ask = Ask { prompt, max_tokens: 3, seed: 1, salt: 0 };
        let mut asked = [Asked::new(&handle, ask.clone())];
        drive(&mut engine, &mut asked);
        assert_eq!(asked[0].said(), solo(&reference, &ask));
        let Some(Event::Done(done)) = &asked[0].end else { panic!("{:?}", asked[0].end) };
        cached.push(done.usage.cached_tokens);
    }
    assert_eq!(cached, [0, 0, 101]);
}

#[test]
fn equal_prompts_at_once_are_computed_once() {
    let reference = model(Dtype::F32);
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings());
    let ask = |seed| Ask { prompt: prompt(300, 7), max_tokens: 6, seed, salt: 0 };
    let mut asked: Vec<Asked> = (0..4).map(|seed| Asked::new(&handle, ask(seed))).collect();
    drive(&mut engine, &mut asked);
    asked.iter().for_each(|a| assert_eq!(a.said(), solo(&reference, &a.ask)));
    assert_eq!(handle.metrics().prefill_tokens.get(), 300);
}

#[test]
fn scores_and_means_are_those_of_a_session() {
    let reference = model(Dtype::F32);
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings());
    let ask = Ask { prompt: prompt(170, 3), max_tokens: 1, seed: 1, salt: 0 };
    let mut scores = vec![];
    let mut means = vec![];
    // Whatever is in the cache, and whatever else is under way.
    for others in [0, 3] {
        let mut request = ask.request(&Seen::default());
        (request.score, request.pool, request.logprobs) = (Some(2), true, Some(61));
        let mut answer = handle.submit(handle.admit().unwrap(), request).unwrap();
        let beside = |seed| Ask { prompt: prompt(90, seed), max_tokens: 9, seed, salt: 0 };
        let mut asked: Vec<Asked> = (0..others).map(|seed| Asked::new(&handle, beside(seed))).collect();
        let mut events = vec![];
        while !matches!(events.last(), Some(Event::Done(_))) {
            engine.listen(Duration::ZERO);
            engine.step();
            asked.iter_mut().for_each(Asked::read);
            events.extend(std::iter::from_fn(|| answer.try_next()));
        }
        let [Event::Prompt(prompt), Event::Pooled(mean), Event::Token(token), _] = events.as_slice() else {
            panic!("{events:?}")
        };
        let all = token.logprob.as_ref().unwrap();
        assert_eq!((all.token, all.top.len()), (token.id, 61));
        scores.push(prompt.clone());
        means.push(mean.clone());
    }
    assert_eq!(scores[0], scores[1]);
    assert_eq!(means[0], means[1]);
    let expected = Session::new(&reference, CONTEXT).score(&ask.prompt, None);
    let got: Vec<Option<f32>> = scores[0].iter().map(|s| s.as_ref().map(|s| s.logprob)).collect();
    assert_eq!(got, expected);
    for (score, token) in scores[0].iter().zip(&ask.prompt).skip(1) {
        let score = score.as_ref().unwrap();
        assert_eq!((score.token, score.top.len()), (*token, 2));
        assert!(score.top[0].1 >= score.top[1].1 && score.top[0].1 >= score.logprob - 1e-6);
    }
    let norm: f32 = means[0].iter().map(|x| x * x).sum();
    assert!(means[0].len() == 24 && norm > 0.0);
}

#[test]
fn a_saved_state_goes_on_in_another_engine_and_nothing_else_is_taken_for_one() {
    let reference = model(Dtype::Bf16);
    let (mut engine, handle) = Engine::new(model(Dtype::Bf16), None, settings());
    let ask = Ask { prompt: prompt(200, 5), max_tokens: 12, seed: 8, salt: 0 };
    let mut asked = [Asked::new(&handle, ask.clone())];
    drive(&mut engine, &mut asked);
    let mut history = ask.prompt.clone();
    history.extend(&asked[0].tokens);
    history.extend(prompt(9, 6));
    let found = saved::export(&engine.cache, &engine.state, &engine.model, &Salt("0".into()), &history);
    let saved = found.unwrap();
    assert_eq!(saved.tokens, history[..200 + asked[0].tokens.len() - 1]);

    let (mut engine, handle) = Engine::new(model(Dtype::Bf16), None, Settings { slots: 7, ..settings() });
    let Engine { cache, state, model, .. } = &mut engine;
    let salt = Salt("0".into());
    assert_eq!(saved::import(cache, state, model, &salt, &saved).unwrap(), saved.tokens.len());
    let turn = Ask { prompt: history, max_tokens: 9, seed: 2, salt: 0 };
    let mut asked = [Asked::new(&handle, turn.clone())];
    drive(&mut engine, &mut asked);
    assert_eq!(asked[0].said(), solo(&reference, &turn));
    let computed = handle.metrics().prefill_tokens.get() as usize;
    assert_eq!(computed, turn.prompt.len() - saved.tokens.len());

    let Engine { cache, state, model, .. } = &mut engine;
    let mut refused = |change: &dyn Fn(&mut Saved)| {
        let mut other = saved.clone();
        change(&mut other);
        saved::import(cache, state, model, &salt, &other).unwrap_err().to_string()
    };
    assert!(refused(&|s| s.layout.push('x')).contains("layout"));
    let others =
        saved.layout.strip_suffix(&format!(" {}", zamba::ARITHMETIC)).expect("the arithmetic at the end");
    let older = format!("{others} {}", zamba::ARITHMETIC - 1);
    assert!(refused(&|s| s.layout.clone_from(&older)).contains("layout"));
    assert!(refused(&|s| s.tokens.clear()).contains("0 tokens"));
    assert!(refused(&|s| s.tokens.extend([1; 500])).contains("tokens in a context"));
    assert!(refused(&|s| s.tokens[3] = 61).contains("token 61"));
    assert!(refused(&|s| s.recurrent.truncate(8)).contains("8 bytes"));
    assert!(refused(&|s| drop(s.rows.pop())).contains("runs of rows"));
    assert!(refused(&|s| s.rows[1].truncate(2)).contains("run 1"));
}
