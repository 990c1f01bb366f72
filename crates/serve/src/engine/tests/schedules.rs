//! Random schedules: arrivals, cancellations, sizes of chunks and batches, reuse of slots, caches that hold much,
//! little or nothing, readers that come and go, and restarts in between.

use super::*;

/// Schedules in the ordinary run of the tests. `ZAMBA_SCHEDULES` asks for another number.
const SCHEDULES: u64 = 150;

/// A small generator of numbers: splitmix64.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `low ..= high`.
    fn within(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.within(0, all.len() - 1)]
    }
}

/// What could be asked: few trunks with many branches, so that beginnings are shared, at borders and beside them.
fn ask(draw: &mut Draw) -> Ask {
    let trunk = prompt(320, draw.next() % 3);
    let mut tokens = trunk[..draw.of(&[0, 1, 2, 3, 31, 32, 33, 64, 100, 256, 257, 320])].to_vec();
    let branch = draw.within(usize::from(tokens.is_empty()), 5) * draw.within(1, 12);
    tokens.extend(prompt(branch.max(usize::from(tokens.is_empty())), 100 + draw.next() % 3));
    Ask {
        prompt: tokens,
        max_tokens: draw.within(1, 12),
        seed: draw.next() % 4,
        salt: (draw.next() % 2) as u8,
    }
}

fn random_settings(draw: &mut Draw, bytes_of_state: u64) -> Settings {
    let most = draw.of(&[2, 16]);
    let slots = draw.within(1, most);
    Settings {
        slots,
        context: CONTEXT,
        batch_tokens: slots + draw.of(&[1, 2, 3, 7, 32, 64, 200, 512]),
        mixed_tokens: draw.of(&[1, 2, 3, 5, 31, 64, 512]),
        // None, a few states that push one another out, and all that come.
        cache_bytes: draw.of(&[0, 3 * bytes_of_state, 12 * bytes_of_state, 1 << 30]),
        cache_interval: draw.of(&[1, 7, 32, 100, 1000]),
        event_backlog: draw.of(&[1, 2, 3, 4, 64]),
        park_after: draw.of(&[Duration::ZERO, Duration::ZERO, Duration::from_secs(1)]),
        ..Settings::default()
    }
}

/// What happened in all schedules, to be sure that something did.
#[derive(Default, Debug)]
struct Tally {
    finished: usize,
    cancelled: usize,
    hits: u64,
    evictions: u64,
    imported: usize,
    parked: u64,
    refed: u64,
}

struct World {
    model: fn() -> Zamba,
    reference: Zamba,
    alone: HashMap<Ask, Said>,
    tally: Tally,
}

impl World {
    fn check(&mut self, asked: &Asked, cancelled: bool, seed: u64) {
        let World { reference, alone, .. } = self;
        let (tokens, hashes) = alone.entry(asked.ask.clone()).or_insert_with(|| solo(reference, &asked.ask));
        let (got, seen) = asked.said();
        if cancelled {
            assert!(
                tokens.starts_with(&got) && hashes.starts_with(&seen),
                "schedule {seed}: {:?}",
                asked.ask
            );
            self.tally.cancelled += 1;
        } else {
            assert!(matches!(asked.end, Some(Event::Done(_))), "schedule {seed}: {:?}", asked.end);
            assert_eq!((&got, &seen), (&*tokens, &*hashes), "schedule {seed}: {:?}", asked.ask);
            self.tally.finished += 1;
        }
    }

    fn run(&mut self, seed: u64) {
        let mut draw = Draw(seed);
        let settings = random_settings(&mut draw, 8 << 10);
        let (mut engine, mut handle) = Engine::new((self.model)(), None, settings);
        let (mut asked, mut recent): (Vec<Asked>, Vec<Ask>) = (vec![], vec![]);
        let mut to_come = draw.within(2, 14);
        let lazy = draw.one_in(2);
        while to_come > 0 || !asked.is_empty() {
            if to_come > 0 && draw.one_in(3) {
                let again = !recent.is_empty() && draw.one_in(4);
                let ask =
                    if again { recent[draw.within(0, recent.len() - 1)].clone() } else { ask(&mut draw) };
                recent.push(ask.clone());
                asked.push(Asked::new(&handle, ask));
                to_come -= 1;
            }
            engine.listen(Duration::ZERO);
            engine.step();
            for a in &mut asked {
                match a.rest {
                    0 => a.read(),
                    _ => a.rest -= 1,
                }
                if lazy && a.rest == 0 && draw.one_in(6) {
                    a.rest = draw.within(1, 30);
                }
            }
            if !asked.is_empty() && draw.one_in(if lazy { 80 } else { 25 }) {
                let gone = asked.swap_remove(draw.within(0, asked.len() - 1));
                let cancelled = gone.end.is_none();
                self.check(&gone, cancelled, seed);
            }
            for done in asked.extract_if(.., |a| a.end.is_some()) {
                self.check(&done, false, seed);
            }
            if asked.is_empty() && draw.one_in(4) {
                (engine, handle) = self.restart(engine, &recent, &mut draw);
            }
        }
        self.count(&engine);
        engine.listen(Duration::ZERO);
        engine.step();
        assert!(engine.active.is_empty() && engine.parked.is_empty() && engine.queue.len() == 0);
        assert_eq!(engine.free.len(), engine.settings.slots);
        assert_eq!(handle.in_flight(), 0);
    }

    fn count(&mut self, engine: &Engine) {
        self.tally.hits += engine.metrics.cache_hits.get();
        self.tally.evictions += engine.cache.evictions();
        self.tally.parked += engine.metrics.parkings.get();
        self.tally.refed += engine.metrics.refed_tokens.get();
    }

    /// A new engine that is given some of what the old one had kept.
    fn restart(&mut self, old: Engine, recent: &[Ask], draw: &mut Draw) -> (Engine, Handle) {
        self.count(&old);
        let (mut engine, handle) = Engine::new((self.model)(), None, random_settings(draw, 8 << 10));
        for ask in recent.iter().rev().take(draw.within(0, 5)) {
            let salt = Salt(ask.salt.to_string().into());
            let saved = saved::export(&old.cache, &old.state, &old.model, &salt, &ask.prompt);
            if let Some(saved) = saved {
                let Engine { cache, state, model, .. } = &mut engine;
                self.tally.imported += usize::from(saved::import(cache, state, model, &salt, &saved).is_ok());
            }
        }
        (engine, handle)
    }
}

fn schedules(model: fn() -> Zamba, from: u64) {
    let wanted = std::env::var("ZAMBA_SCHEDULES").ok().and_then(|n| n.parse().ok());
    let mut world = World { model, reference: model(), alone: HashMap::new(), tally: Tally::default() };
    for seed in from..from + wanted.unwrap_or(SCHEDULES) {
        world.run(seed);
    }
    println!("{:?}", world.tally);
    let Tally { finished, cancelled, hits, evictions, imported, parked, refed } = world.tally;
    assert!(finished > 0 && cancelled > 0 && hits > 0 && evictions > 0 && imported > 0);
    assert!(parked > 0 && refed > 0);
}

#[test]
fn served_is_solo_in_f32() {
    schedules(|| model(Dtype::F32), 0);
}

#[test]
fn served_is_solo_in_bf16() {
    schedules(|| model(Dtype::Bf16), 1 << 32);
}
