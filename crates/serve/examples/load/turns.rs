//! The second turn of a long conversation: only what is new should cost anything.

use serde_json::{Value, json};

use crate::Result;
use crate::args::Turns;
use crate::ask::{self, Ask, Streamed};
use crate::numbers::{Draws, median, ms};
use crate::server::Server;

/// One conversation, in three ways.
struct Times {
    /// The second turn, after the first one.
    second: f64,
    /// The new tokens with nothing before them.
    alone: f64,
    /// The whole second prompt with nothing in the cache.
    cold: f64,
    cached: f64,
    same: bool,
}

pub(crate) async fn run(server: &Server, load: &Turns) -> Result<Value> {
    let mut all = vec![];
    // The first one warms up caches of the machine.
    conversation(server, load, 0).await?;
    for number in 1..=load.repeats {
        all.push(conversation(server, load, number as u64).await?);
    }
    let of = |f: fn(&Times) -> f64| median(&all.iter().map(f).collect::<Vec<_>>());
    let (second, alone, cold) = (of(|t| t.second), of(|t| t.alone), of(|t| t.cold));
    Ok(json!({
        "history_tokens": load.history,
        "new_tokens": load.question,
        "second_turn_first_token_ms": second,
        "new_tokens_alone_first_token_ms": alone,
        "without_cache_first_token_ms": cold,
        "second_turn_over_new_alone": second / alone,
        "without_cache_over_second_turn": cold / second,
        "cached_tokens": of(|t| t.cached),
        "same_answer_with_and_without_cache": all.iter().all(|t| t.same),
        "second_turn_of_each_repeat": all.iter().map(|t| t.second).collect::<Vec<_>>(),
        "new_alone_of_each_repeat": all.iter().map(|t| t.alone).collect::<Vec<_>>(),
    }))
}

async fn conversation(server: &Server, load: &Turns, number: u64) -> Result<Times> {
    let mut draws = Draws::new(server.seed, 3_000_000 + number);
    let salted = |prompt: Vec<u32>, tokens, salt: &str| Ask {
        salt: Some(format!("{salt}-{number}")),
        ..Ask::new(prompt, tokens, number)
    };
    let prompt = draws.tokens(load.history.saturating_sub(load.answer).max(1), server.vocab);
    let question = draws.tokens(load.question, server.vocab);
    let first = get(server, &salted(prompt.clone(), load.answer, "turns")).await?;
    let whole = [prompt.as_slice(), &first.tokens, &question].concat();
    let second = get(server, &salted(whole.clone(), 16, "turns")).await?;
    let cold = get(server, &salted(whole, 16, "cold")).await?;
    let alone = get(server, &salted(question, 16, "alone")).await?;
    Ok(Times {
        second: ms(second.first),
        alone: ms(alone.first),
        cold: ms(cold.first),
        cached: second.cached as f64,
        same: second.same(&cold),
    })
}

async fn get(server: &Server, ask: &Ask) -> Result<Streamed> {
    ask::stream(server.address, ask).await.answer()
}
