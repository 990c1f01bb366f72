//! The fast device against the definition, tier by tier.

use zamba_kernels::cases;
use zamba_kernels::cpu::{Cpu, Isa};

/// Every tier of this machine. Says which ones it lacks, so that a run that skips them does not look like
/// one that checked them.
fn tiers() -> Vec<Isa> {
    let tiers = Isa::available();
    for name in Isa::NAMES {
        if Isa::named(name).is_err() {
            eprintln!("NOT TESTED: this machine lacks the {name} tier");
        }
    }
    tiers
}

/// All cases, or those at the places that `ZAMBA_CASES` lists, for a checker that takes ten thousand times as long.
fn chosen_cases() -> Vec<cases::Case> {
    let Ok(list) = std::env::var("ZAMBA_CASES") else { return cases::all() };
    let places: Vec<usize> =
        list.split(',').map(|place| place.parse().expect("the place of a case")).collect();
    eprintln!("NOT TESTED: all but {} cases", places.len());
    cases::all().into_iter().enumerate().filter(|(i, _)| places.contains(i)).map(|(_, case)| case).collect()
}

/// The failures of `check` over all cases, or a panic with all of them.
fn each_case(check: impl Fn(&cases::Case) -> Result<(), String>) {
    let failures: Vec<_> = chosen_cases().iter().filter_map(|case| check(case).err()).collect();
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_case_agrees_with_the_definition() {
    for isa in tiers() {
        for threads in [1, 2] {
            let cpu = Cpu::with(isa, threads);
            each_case(|case| case.check(&cpu));
        }
    }
}

#[test]
fn the_number_of_threads_leaves_no_trace() {
    for isa in tiers() {
        let devices = [1, 2, 3].map(|threads| Cpu::with(isa, threads));
        each_case(|case| {
            let [one, two, three] = devices.each_ref().map(|cpu| case.run_bits(cpu));
            let same = one == two && one == three;
            if same { Ok(()) } else { Err(format!("{} on {isa}", case.name())) }
        });
    }
}

#[test]
fn a_repeated_call_gives_the_same_bits() {
    let cpu = Cpu::new(None);
    each_case(|case| if case.run_bits(&cpu) == case.run_bits(&cpu) { Ok(()) } else { Err(case.name()) });
}

#[test]
fn a_sequence_gives_the_same_bits_however_it_is_cut_and_batched() {
    for isa in tiers() {
        for threads in [1, 3] {
            cases::check_cutting(&Cpu::with(isa, threads)).unwrap();
        }
    }
}

#[test]
fn fused_tiers_agree_bit_for_bit() {
    // Both count in lanes of 16 and round products and sums once, so they do the same arithmetic.
    let [Ok(avx2), Ok(avx512)] = ["avx2", "avx512"].map(Isa::named) else {
        eprintln!("NOT TESTED: this machine lacks avx2 or avx512");
        return;
    };
    let (avx2, avx512) = (Cpu::with(avx2, 2), Cpu::with(avx512, 2));
    each_case(|case| if case.run_bits(&avx2) == case.run_bits(&avx512) { Ok(()) } else { Err(case.name()) });
}
