//! Readers that stop reading cost nobody else anything, and lose nothing as long as they live.

use super::*;

/// Settings with two slots, for sequences that get a few tokens ahead of their readers and no further.
fn narrow() -> Settings {
    Settings { slots: 2, event_backlog: 4, park_after: Duration::ZERO, ..settings() }
}

/// Questions with long answers.
fn long(reference: &Zamba) -> impl Iterator<Item = Ask> {
    let asks = (1..).map(|seed| Ask { prompt: prompt(70, seed), max_tokens: 40, seed, salt: 0 });
    asks.filter(|ask| solo(reference, ask).0.len() == ask.max_tokens)
}

fn short(seed: u64) -> Ask {
    Ask { prompt: prompt(20, seed), max_tokens: 10, seed, salt: 2 }
}

/// Takes steps until nothing moves any more, with nobody reading.
fn settle(engine: &mut Engine) {
    engine.listen(Duration::ZERO);
    while engine.step() {}
}

/// The number of steps until `asked` has its answer.
fn steps(engine: &mut Engine, asked: &mut Asked) -> usize {
    let mut steps = 0;
    while asked.end.is_none() {
        engine.listen(Duration::ZERO);
        engine.step();
        asked.read();
        steps += 1;
        assert!(steps < 1000, "it is not served");
    }
    steps
}

/// An engine whose slots are held by two readers that do not read, of salts 0 and 1.
fn stalled(reference: &Zamba, settings: Settings) -> (Engine, Handle, Vec<Asked>) {
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings);
    let asks = long(reference).zip(0..2).map(|(ask, salt)| Ask { salt, ..ask });
    let asked: Vec<Asked> = asks.map(|ask| Asked::new(&handle, ask)).collect();
    settle(&mut engine);
    assert_eq!((engine.active.len(), engine.parked.len()), (2, 0), "nobody else wants their slots");
    (engine, handle, asked)
}

#[test]
fn who_does_not_read_makes_room_for_others_and_loses_nothing() {
    let reference = model(Dtype::F32);
    // A cache that holds everything, and one that holds nothing for long.
    for (cache_bytes, kept) in [(1 << 30, true), (1, false)] {
        let settings = Settings { cache_bytes, ..narrow() };
        let (mut engine, handle, mut lazy) = stalled(&reference, settings);
        let ahead = lazy[0].seen.lock().unwrap().len();

        let mut healthy = Asked::new(&handle, short(5));
        let alone = solo(&reference, &healthy.ask);
        assert_eq!(steps(&mut engine, &mut healthy), alone.0.len());
        assert_eq!(healthy.said(), alone);
        assert_eq!((engine.active.len(), engine.parked.len()), (1, 1), "no more than were in the way");
        let mut more = [Asked::new(&handle, short(6)), Asked::new(&handle, short(7))];
        drive(&mut engine, &mut more);
        more.iter().for_each(|a| assert_eq!(a.said(), solo(&reference, &a.ask)));
        assert_eq!((engine.parked.len(), handle.in_flight()), (2, 2));
        assert_eq!(engine.free.len(), 2, "a slot is of no use to them");
        assert_eq!((handle.metrics().parked.get(), handle.metrics().parkings.get()), (2, 2));

        drive(&mut engine, &mut lazy);
        for a in &lazy {
            assert_eq!(a.said(), solo(&reference, &a.ask));
            let Some(Event::Done(done)) = &a.end else { panic!("{:?}", a.end) };
            let usage = (done.usage.prompt_tokens, done.usage.cached_tokens, done.usage.completion_tokens);
            assert_eq!(usage, (70, 0, 40));
        }
        let m = handle.metrics();
        let again = if kept { 0 } else { 2 * (70 + ahead as u64 - 1) };
        assert_eq!(m.refed_tokens.get(), again);
        assert_eq!(m.prefill_tokens.get(), 2 * 70 + 3 * 20, "no prompt counts twice");
        assert_eq!((m.parkings.get(), handle.in_flight()), (2, 0));
    }
}

#[test]
fn what_is_parked_belongs_to_its_salt() {
    let reference = model(Dtype::F32);
    let (mut engine, handle, mut lazy) = stalled(&reference, narrow());
    let mut healthy = [Asked::new(&handle, short(5)), Asked::new(&handle, short(6))];
    drive(&mut engine, &mut healthy);
    assert_eq!(engine.parked.len(), 2);
    lazy[0].read();
    let fed = 70 + lazy[0].tokens.len() - 1;
    let history = [lazy[0].ask.prompt.clone(), lazy[0].tokens.clone()].concat();
    for (salt, cached) in [(1, 0), (2, 0), (0, fed)] {
        let found = engine.cache.find(&Salt(salt.to_string().into()), &history);
        assert_eq!(found.len, cached, "salt {salt}");
    }
}

#[test]
fn what_is_parked_ends_like_everything_else() {
    let reference = model(Dtype::F32);
    let parked = || {
        let (mut engine, handle, lazy) = stalled(&reference, narrow());
        let mut healthy = [Asked::new(&handle, short(5)), Asked::new(&handle, short(6))];
        drive(&mut engine, &mut healthy);
        assert_eq!((engine.parked.len(), handle.in_flight()), (2, 2));
        (engine, handle, lazy)
    };
    let failed = |lazy: &mut Asked| {
        lazy.read();
        lazy.end.take()
    };

    // Who has gone gives back the permit.
    let (mut engine, handle, mut lazy) = parked();
    drop(lazy.remove(0));
    engine.step();
    assert_eq!((engine.parked.len(), handle.in_flight()), (1, 1));

    // Time runs out.
    engine.settings.request_timeout = Duration::ZERO;
    engine.step();
    assert_eq!((engine.parked.len(), handle.in_flight()), (0, 0));
    assert_eq!(failed(&mut lazy[0]), Some(Event::Failed(Failure::RequestTimeout)));

    // The server goes away.
    let (engine, handle, mut lazy) = parked();
    handle.stop();
    engine.run();
    assert_eq!(handle.in_flight(), 0);
    lazy.iter_mut().for_each(|a| assert_eq!(failed(a), Some(Event::Failed(Failure::ShuttingDown))));

    // A fault in the model does not reach what is in no slot.
    let (mut engine, _handle, mut lazy) = parked();
    engine.begin_anew("fault");
    drive(&mut engine, &mut lazy);
    lazy.iter().for_each(|a| assert_eq!(a.said(), solo(&reference, &a.ask)));
}

#[test]
fn a_slow_reader_lives_as_long_as_it_reads() {
    let reference = model(Dtype::F32);
    let (mut engine, handle, mut lazy) = stalled(&reference, Settings { event_backlog: 20, ..narrow() });
    let mut healthy = [Asked::new(&handle, short(5)), Asked::new(&handle, short(6))];
    drive(&mut engine, &mut healthy);
    assert_eq!(engine.parked.len(), 2);
    // Nearly as much time as there is, again and again; the other one reads nothing.
    let (mut now, stall) = (Instant::now(), engine.settings.stall_timeout);
    for left in [2, 1, 1, 1] {
        now += stall - Duration::from_secs(1);
        assert!(lazy[0].read_one());
        engine.sweep_parked(now);
        assert_eq!(engine.parked.len(), left);
    }
    lazy[1].read();
    assert_eq!(lazy[1].end, Some(Event::Failed(Failure::Stalled)));
    engine.sweep_parked(now + stall);
    assert_eq!(engine.parked.len(), 1);
    engine.sweep_parked(now + stall + Duration::from_secs(1));
    lazy[0].read();
    assert_eq!(lazy[0].end, Some(Event::Failed(Failure::Stalled)));
    assert_eq!(handle.in_flight(), 0);
}

#[test]
fn who_was_parked_goes_first_when_there_is_a_slot_and_last_when_there_is_none() {
    let reference = model(Dtype::F32);
    let (mut engine, handle, mut lazy) = stalled(&reference, narrow());
    let mut healthy = Asked::new(&handle, short(5));
    steps(&mut engine, &mut healthy);
    assert_eq!(engine.parked.len(), 1);
    // The other one is not known to be slow, and has an hour's time.
    engine.settings.park_after = Duration::from_secs(3600);
    let held = engine.active[0].request.salt.clone();
    let slow = lazy.iter_mut().find(|a| a.ask.salt.to_string() != *held.0);
    slow.expect("the one that is parked").read();
    let mut queued = [Asked::new(&handle, short(6)), Asked::new(&handle, short(7))];
    engine.listen(Duration::ZERO);
    engine.step();
    assert_eq!((engine.parked.len(), engine.queue.len()), (0, 2), "it was there before them");
    drive(&mut engine, &mut queued);
    assert_eq!(engine.parked.len(), 1, "and makes room at once");
    assert_eq!(handle.metrics().parkings.get(), 2);
    drive(&mut engine, &mut lazy);
    lazy.iter().for_each(|a| assert_eq!(a.said(), solo(&reference, &a.ask)));
}
