//! Faults end the request that they belong to, and nothing else.

use super::*;

/// Panics, fails or goes on, as told, at a given token.
struct Trap {
    at: usize,
    how: How,
    count: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    PanicInMask,
    PanicInAccept,
    FailInMask,
    BanAll,
}

impl Constrain for Trap {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let due = self.count == self.at;
        match self.how {
            How::PanicInMask if due => panic!("trap"),
            How::FailInMask if due => Err("trap".to_owned()),
            How::BanAll if due => {
                logits.fill(f32::NEG_INFINITY);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        self.count += 1;
        if self.how == How::PanicInAccept && self.count > self.at {
            panic!("trap");
        }
        Ok(())
    }

    fn finished(&mut self) -> bool {
        false
    }
}

#[test]
fn a_fault_in_one_request_leaves_the_others_as_they_are() {
    let reference = model(Dtype::F32);
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings());
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for (i, how) in
        [How::PanicInMask, How::PanicInAccept, How::FailInMask, How::BanAll].into_iter().enumerate()
    {
        for at in [0, 1, 3] {
            let beside = |seed| Ask { prompt: prompt(40, seed), max_tokens: 12, seed, salt: 0 };
            let mut asked: Vec<Asked> = (0..3).map(|seed| Asked::new(&handle, beside(seed))).collect();
            let mut request = beside(50 + i as u64).request(&Seen::default());
            request.ends.clear();
            request.constraint = Some(Box::new(Trap { at, how, count: 0 }));
            let mut answer = handle.submit(handle.admit().unwrap(), request).unwrap();
            drive(&mut engine, &mut asked);
            asked.iter().for_each(|a| assert_eq!(a.said(), solo(&reference, &a.ask)));
            let events: Vec<Event> = std::iter::from_fn(|| answer.try_next()).collect();
            assert_eq!(events.len(), at + 1, "{events:?}");
            match (how, events.last().unwrap()) {
                (How::PanicInMask | How::PanicInAccept, Event::Failed(Failure::Internal(words))) => {
                    assert_eq!(words, "trap");
                }
                (How::FailInMask, Event::Failed(Failure::Constraint(_))) => {}
                (How::BanAll, Event::Failed(Failure::Sampling(_))) => {}
                (_, other) => panic!("{other:?}"),
            }
        }
    }
    std::panic::set_hook(hook);
    assert_eq!((engine.free.len(), handle.in_flight()), (4, 0));
}

#[test]
fn after_a_fault_in_the_model_all_that_was_under_way_fails_and_the_next_is_served() {
    let reference = model(Dtype::F32);
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings());
    let ask = |seed| Ask { prompt: prompt(70, seed), max_tokens: 4, seed, salt: 0 };
    let mut asked: Vec<Asked> = (0..6).map(|seed| Asked::new(&handle, ask(seed))).collect();
    engine.listen(Duration::ZERO);
    engine.step();
    engine.begin_anew("fault");
    asked.iter_mut().for_each(Asked::read);
    let failed = asked.extract_if(.., |a| matches!(a.end, Some(Event::Failed(Failure::Internal(_))))).count();
    assert_eq!((failed, asked.len()), (4, 2), "those in slots, and those in the queue");
    drive(&mut engine, &mut asked);
    asked.iter().for_each(|a| assert_eq!(a.said(), solo(&reference, &a.ask)));
}

#[test]
fn a_reader_that_stops_pauses_its_sequence_alone_and_loses_nothing() {
    let reference = model(Dtype::F32);
    let settings = Settings { event_backlog: 2, ..settings() };
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings);
    let ask = |seed| Ask { prompt: prompt(20, seed), max_tokens: 40, seed, salt: 0 };
    let mut lazy = Asked::new(&handle, ask(1));
    let mut others = [Asked::new(&handle, ask(2)), Asked::new(&handle, ask(4))];
    drive(&mut engine, &mut others);
    others.iter().for_each(|a| assert_eq!(a.said(), solo(&reference, &a.ask)));
    assert!(!engine.step(), "nothing to do while nobody reads");
    let waiting = lazy.seen.lock().unwrap().len();
    assert!((2..=5).contains(&waiting), "{waiting} tokens ahead of the reader");
    lazy.read();
    drive(&mut engine, std::slice::from_mut(&mut lazy));
    assert_eq!(lazy.said(), solo(&reference, &lazy.ask));
}

#[test]
fn who_does_not_read_is_given_up_and_so_is_who_has_gone() {
    let settings = Settings { event_backlog: 1, stall_timeout: Duration::ZERO, ..settings() };
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings);
    let ask = Ask { prompt: prompt(20, 1), max_tokens: 40, seed: 1, salt: 0 };
    let mut stalled = Asked::new(&handle, ask.clone());
    engine.listen(Duration::ZERO);
    engine.step();
    for _ in 0..1000 {
        std::thread::sleep(Duration::from_micros(10));
        engine.step();
    }
    assert!(engine.active.is_empty());
    stalled.read();
    assert_eq!(stalled.end, Some(Event::Failed(Failure::Stalled)));

    let gone = Asked::new(&handle, ask);
    engine.listen(Duration::ZERO);
    engine.step();
    assert_eq!((engine.active.len(), handle.in_flight()), (1, 1));
    drop(gone);
    engine.step();
    assert_eq!((engine.active.len(), engine.free.len(), handle.in_flight()), (0, 4, 0));
}

#[test]
fn too_many_are_turned_away_before_anything_is_done_for_them() {
    let settings = Settings { slots: 1, max_queue: 2, max_queue_tokens: 100, batch_tokens: 8, ..settings() };
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings);
    let ask = |len| Ask { prompt: prompt(len, 1), max_tokens: 3, seed: 1, salt: 0 };
    let mut asked = vec![Asked::new(&handle, ask(90))];
    let permit = handle.admit().unwrap();
    let refused = handle.submit(permit, ask(20).request(&Seen::default())).err().unwrap();
    assert!(matches!(refused, Refusal::Busy { .. }), "too many tokens wait");
    asked.push(Asked::new(&handle, ask(5)));
    asked.push(Asked::new(&handle, ask(5)));
    let times: Vec<f64> = (0..100)
        .map(|_| match handle.admit().err() {
            Some(Refusal::Busy { retry_after }) => retry_after.as_secs_f64(),
            other => panic!("{other:?}"),
        })
        .collect();
    // Nothing has been through the queue yet, so what is said is the least: one second, and up to two.
    for tenth in 0..10 {
        let from = 1.0 + f64::from(tenth) / 10.0;
        let within = times.iter().filter(|time| (from..from + 0.1).contains(*time)).count();
        assert!((8..=12).contains(&within), "{within} of 100 are told {from:.1} s and a tenth");
    }
    assert_eq!(handle.in_flight(), 3);
    drive(&mut engine, &mut asked);
    assert_eq!(handle.in_flight(), 0);
    handle.close();
    assert_eq!(handle.admit().err(), Some(Refusal::ShuttingDown));
}

#[test]
fn what_waits_too_long_or_is_broken_off_is_told_so() {
    let settings = Settings { slots: 1, batch_tokens: 8, queue_timeout: Duration::ZERO, ..settings() };
    let (mut engine, handle) = Engine::new(model(Dtype::F32), None, settings);
    let ask = |seed| Ask { prompt: prompt(50, seed), max_tokens: 3, seed, salt: 0 };
    let mut late = [Asked::new(&handle, ask(1))];
    engine.listen(Duration::ZERO);
    std::thread::sleep(Duration::from_millis(2));
    engine.step();
    late[0].read();
    assert_eq!(late[0].end, Some(Event::Failed(Failure::QueueTimeout)));

    engine.settings.queue_timeout = Duration::from_secs(9);
    let mut asked = [Asked::new(&handle, ask(1)), Asked::new(&handle, ask(2)), Asked::new(&handle, ask(3))];
    engine.listen(Duration::ZERO);
    engine.step();
    handle.stop();
    engine.run();
    for a in &mut asked {
        a.read();
        assert_eq!(a.end, Some(Event::Failed(Failure::ShuttingDown)));
    }
    assert_eq!(handle.in_flight(), 0);
}

#[test]
fn requests_that_cannot_be_right_are_refused_by_name() {
    let (_engine, handle) = Engine::new(model(Dtype::F32), None, settings());
    let ask = |prompt| Ask { prompt, max_tokens: 3, seed: 1, salt: 0 };
    let refuse = |change: &dyn Fn(&mut Request)| {
        let mut request = ask(prompt(5, 1)).request(&Seen::default());
        change(&mut request);
        handle.submit(handle.admit().unwrap(), request).err().unwrap().to_string()
    };
    assert!(refuse(&|r| r.prompt.clear()).contains("no tokens"));
    assert!(refuse(&|r| r.prompt = vec![1; CONTEXT]).contains("640"));
    assert!(refuse(&|r| r.prompt[2] = 61).contains("token 61"));
    assert!(refuse(&|r| r.sampler.logit_bias.push((99, 1.0))).contains("token 99"));
    assert!(refuse(&|r| r.sampler.temperature = -1.0).contains("temperature"));
    assert!(refuse(&|r| r.stops.push("x".to_owned())).contains("tokenizer"));
    assert_eq!(handle.in_flight(), 0);
}
