//! The definition checks itself: its gradients against dual numbers, its results against themselves.

use zamba_kernels::cases::{all, check_cutting};
use zamba_kernels::reference::Reference;

/// Runs `check` on all cases and shows all failures at once.
fn each_case(check: impl Fn(&zamba_kernels::cases::Case) -> Result<(), String>) {
    let failures: Vec<String> = all().iter().filter_map(|case| check(case).err()).collect();
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn gradients_are_derivatives_of_the_definition() {
    assert!(all().iter().filter(|case| case.has_gradient()).count() > 50);
    each_case(|case| case.check_gradient());
}

/// Overwriting, adding, offsets and rounding of the reference device, on top of the same definition.
#[test]
fn reference_device_is_the_definition() {
    each_case(|case| case.check(&Reference::new()));
}

#[test]
fn reference_repeats_its_bits() {
    each_case(|case| match case.run_bits(&Reference) == case.run_bits(&Reference) {
        true => Ok(()),
        false => Err(case.name()),
    });
}

#[test]
fn reference_gives_equal_bits_however_a_sequence_is_cut() {
    check_cutting(&Reference::new()).unwrap();
}
