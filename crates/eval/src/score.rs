//! Likelihoods of continuations: what several have in common goes through the model once.

mod run;
mod tree;

pub use run::Limits;
pub(crate) use run::{Event, Scorer, Slots, largest};
pub(crate) use tree::Tree;

/// Tokens of which the last are to be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) tokens: Vec<u32>,
    /// How many of them, at least one and fewer than all.
    pub(crate) scored: usize,
}

impl Item {
    /// What the model sees.
    fn inputs(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }
}

/// How likely a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Natural logarithm of its probability.
    pub loglikelihood: f64,
    /// Whether each of its tokens is the most likely one at its place.
    pub greedy: bool,
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use zamba::{Session, Zamba, ZambaConfig};
    use zamba_kernels::Dtype;
    use zamba_kernels::cpu::Cpu;

    use super::*;

    fn model() -> Zamba {
        let mut config = ZambaConfig::preset("tiny").unwrap();
        config.num_hidden_layers = 3;
        config.layers_block_type.truncate(3);
        config.vocab_size = 40;
        config.check().unwrap();
        Zamba::random(config, Arc::new(Cpu::new(Some(2))), Dtype::F32, 5)
    }

    /// Items with common beginnings of many lengths, prefixes of each other, repetitions, long ones.
    fn items() -> Vec<Item> {
        let text = |seed: u32, len: u32| (0..len).map(move |i| (i * i * 7 + i * seed + seed) % 40);
        let mut items = vec![];
        for subject in 0..3 {
            for question in 0..4 {
                for choice in 0..4 {
                    let mut tokens: Vec<u32> = text(subject, 60 + 300 * (subject % 2)).collect();
                    tokens.extend(text(10 + question, 5 + 20 * question));
                    // The choices share their first token, and one is the beginning of another.
                    tokens.extend(text(50, 1 + choice));
                    tokens.extend(text(30 + choice / 2, choice));
                    items.push(Item { tokens, scored: 1 + 2 * choice as usize });
                }
            }
        }
        items.push(items[5].clone());
        let mut whole = items[6].clone();
        whole.scored = whole.tokens.len() - 1;
        items.push(whole);
        items.push(Item { tokens: vec![1, 2], scored: 1 });
        items
    }

    fn run(model: &Zamba, items: &[Item], reuse: bool, limits: Limits) -> (Vec<Score>, u64) {
        let slots = Slots::new(model, &limits, 700);
        let tree = Tree::new(items, reuse.then_some(slots.levels));
        let mut scores = vec![None; items.len()];
        let (mut done, mut tokens) = (0, 0);
        Scorer::new(model, slots)
            .run(items, &tree, &mut |event| {
                match event {
                    run::Event::Tokens(n) => tokens += n,
                    run::Event::Score(i, score) => {
                        assert!(scores[i].replace(score).is_none(), "scored twice");
                        done += 1;
                    }
                }
                Ok::<_, Infallible>(())
            })
            .unwrap();
        assert_eq!((done, tokens), (items.len(), tree.tokens()));
        (scores.into_iter().map(Option::unwrap).collect(), tokens)
    }

    #[test]
    fn scores_are_those_of_a_session_and_do_not_depend_on_what_is_shared() {
        let model = model();
        let items = items();
        let (plain, all) = run(&model, &items, false, Limits::default());
        for (item, score) in items.iter().zip(&plain) {
            let mut greedy = true;
            let mut at = 0;
            let mut session = Session::new(&model, 700);
            let from = item.tokens.len() - item.scored;
            let logprobs = session.score(
                &item.tokens,
                Some(&mut |rows: &[f32]| {
                    for row in rows.chunks_exact(40) {
                        let best = (0..40).fold(0, |b, i| if row[i] > row[b] { i } else { b });
                        at += 1;
                        if at >= from && at < item.tokens.len() {
                            greedy &= best as u32 == item.tokens[at];
                        }
                    }
                }),
            );
            let sum: f64 = logprobs[from..].iter().map(|x| f64::from(x.unwrap())).sum();
            assert_eq!((score.loglikelihood.to_bits(), score.greedy), (sum.to_bits(), greedy));
        }
        for slots in [2, 3, 5, 24] {
            let (shared, fewer) = run(&model, &items, true, Limits { slots, ..Limits::default() });
            assert_eq!(shared, plain, "bit for bit, with {slots} slots");
            assert!(2 * fewer < all, "{fewer} of {all} tokens");
        }
        let (alone, _) = run(&model, &items, true, Limits { batch_tokens: 7, ..Limits::default() });
        assert_eq!(alone, plain);
    }
}
