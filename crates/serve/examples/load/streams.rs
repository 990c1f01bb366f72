//! Several streams at once against one alone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Result;
use crate::args::Streams;
use crate::ask::{self, Ask, Streamed};
use crate::numbers::{Draws, median};
use crate::server::Server;

pub(crate) async fn run(server: &Server, load: &Streams) -> Result<Value> {
    let ask = |number: usize| {
        let mut draws = Draws::new(server.seed, number as u64);
        Ask::new(draws.tokens(load.prompt, server.vocab), load.tokens, number as u64)
    };
    let all: Vec<Ask> = (0..load.streams).map(ask).collect();
    let (_, alone) = together(server, &all[..1]).await?;
    let (mut one, mut many, mut same) = (vec![], vec![], true);
    for _ in 0..load.repeats {
        one.push(together(server, &all[..1]).await?.0);
        let (rate, answers) = together(server, &all).await?;
        many.push(rate);
        same &= answers[0].same(&alone[0]);
    }
    Ok(json!({
        "streams": load.streams,
        "tokens": load.tokens,
        "one_tokens_per_second": median(&one),
        "many_tokens_per_second": median(&many),
        "many_over_one": median(&many) / median(&one),
        "one_of_each_repeat": one,
        "many_of_each_repeat": many,
        "same_answer_alone_and_among_others": same,
    }))
}

/// Tokens per second between the first token of all and the last one, and the answers.
pub(crate) async fn together(server: &Server, asks: &[Ask]) -> Result<(f64, Vec<Streamed>)> {
    let mut all = JoinSet::new();
    let begun = Instant::now();
    for (number, ask) in asks.iter().enumerate() {
        let (to, ask) = (server.address, ask.clone());
        all.spawn(async move {
            let late = begun.elapsed();
            (number, late, ask::stream(to, &ask).await)
        });
    }
    let mut answers: Vec<Option<Streamed>> = vec![None; asks.len()];
    let (mut first, mut last, mut tokens) = (Duration::MAX, Duration::ZERO, 0);
    while let Some(done) = all.join_next().await {
        let (number, late, outcome) = done.map_err(|e| e.to_string())?;
        let answer = outcome.answer()?;
        first = first.min(late + answer.first);
        last = last.max(late + answer.last);
        tokens += answer.tokens.len();
        answers[number] = Some(answer);
    }
    // The first tokens of all streams come at the end of their prompts, which are no part of this.
    let rate = (tokens - asks.len()) as f64 / (last - first).as_secs_f64();
    Ok((rate, answers.into_iter().flatten().collect()))
}
