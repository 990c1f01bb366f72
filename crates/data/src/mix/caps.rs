//! Weights that keep sources within their caps.

use super::Wanted;

/// The weights of a phase of `samples` rows in which source m gives at most `rooms[m]`: what was asked for, or less where
/// that would be more than there is room for; what is taken from one goes to the others in proportion. `None` if the
/// rooms of all together are too small.
///
/// `wanted` must sum to 1. The blend may be ahead of a weight by one row (see `blend.rs`), so a source that is capped at
/// n rows gets the weight of n - 1.
pub(super) fn weights(wanted: &[Wanted], rooms: &[Option<u64>], samples: u64) -> Option<Vec<f64>> {
    let most = |m: usize| {
        let room = rooms[m]?;
        Some(room.saturating_sub(1) as f64 / samples.max(1) as f64)
    };
    let mut capped = vec![false; wanted.len()];
    loop {
        let taken: f64 = (0..wanted.len()).filter(|&m| capped[m]).filter_map(most).sum();
        let free: f64 = (0..wanted.len()).filter(|&m| !capped[m]).map(|m| wanted[m].weight).sum();
        if free <= 0.0 && taken < 1.0 {
            return None;
        }
        let scale = (1.0 - taken) / free;
        let weight = |m: usize| wanted[m].weight * scale;
        let over: Vec<usize> = (0..wanted.len())
            .filter(|&m| !capped[m] && most(m).is_some_and(|most| weight(m) > most))
            .collect();
        if over.is_empty() {
            let part = |m: usize| if capped[m] { most(m).unwrap_or(0.0) } else { weight(m) };
            return Some((0..wanted.len()).map(part).collect());
        }
        // Capping one raises the others, so none is ever released again.
        over.into_iter().for_each(|m| capped[m] = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(wanted: &[f64], rooms: &[Option<u64>], samples: u64) -> Option<Vec<f64>> {
        let wanted: Vec<Wanted> = wanted.iter().map(|&weight| Wanted { weight, max_epochs: None }).collect();
        weights(&wanted, rooms, samples)
    }

    #[test]
    fn what_one_may_not_give_the_others_give_in_proportion() {
        assert_eq!(of(&[0.5, 0.3, 0.2], &[None; 3], 100), Some(vec![0.5, 0.3, 0.2]));
        assert_eq!(of(&[0.5, 0.25, 0.25], &[Some(21), None, None], 100), Some(vec![0.2, 0.4, 0.4]));
        // The second cap bites only because of the first.
        let both = of(&[0.5, 0.25, 0.25], &[Some(21), Some(31), None], 100).unwrap();
        assert!((both[1] - 0.3).abs() < 1e-12 && (both[2] - 0.5).abs() < 1e-12, "{both:?}");
        assert_eq!(of(&[0.5, 0.5], &[Some(0), None], 100), Some(vec![0.0, 1.0]));
        assert_eq!(of(&[0.5, 0.5], &[Some(40), Some(40)], 100), None);
    }

    proptest! {
        #[test]
        fn weights_sum_to_one_and_keep_the_caps(
            parts in proptest::collection::vec((0.01f64..1.0, proptest::option::of(0u64..400)), 1..6),
            samples in 1u64..1000,
        ) {
            let sum: f64 = parts.iter().map(|part| part.0).sum();
            let wanted: Vec<f64> = parts.iter().map(|part| part.0 / sum).collect();
            let rooms: Vec<Option<u64>> = parts.iter().map(|part| part.1).collect();
            match of(&wanted, &rooms, samples) {
                None => {
                    let room: u64 = rooms.iter().map(|room| room.unwrap_or(u64::MAX / 8)).sum();
                    prop_assert!(room < samples + rooms.len() as u64 + 1);
                }
                Some(weights) => {
                    prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                    for (weight, room) in weights.iter().zip(&rooms) {
                        let most = room.map_or(1.0, |room| room.saturating_sub(1) as f64 / samples as f64);
                        prop_assert!(*weight <= most + 1e-12);
                    }
                }
            }
        }
    }
}
