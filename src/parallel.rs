//! Work that is done side by side.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use crate::run::check_interrupted;

/// How many threads the machine runs at once.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Calls `body` for each of these, for up to `threads` of them at once; answers what it
/// answered, in their order. After a failure or an interruption no other one is begun.
///
/// # Errors
/// Those of `body`, of which the first in their order; an interruption.
pub fn each<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    body: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { return };
            let outcome = check_interrupted().and_then(|()| body(item));
            if outcome.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            done.lock().expect("nothing panics with it").push((number, outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().expect("nothing panics with it");
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn answers_are_in_the_order_of_what_they_are_for() {
        let numbers: Vec<usize> = (0..100).collect();
        let twice = each(&numbers, 4, |number| Ok(2 * number)).expect("none fails");
        assert_eq!(twice, (0..200).step_by(2).collect::<Vec<usize>>());
        let none = each(&[], 4, |number: &usize| Ok(*number)).expect("none fails");
        assert!(none.is_empty());
    }

    #[test]
    fn nothing_is_begun_after_a_failure() {
        let begun = AtomicUsize::new(0);
        let failed = each(&[1, 2, 3, 4], 1, |number| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *number == 2 { bail!("{number}") } else { Ok(()) }
        });
        assert_eq!(failed.expect_err("one fails").to_string(), "2");
        assert_eq!(begun.into_inner(), 2);
    }
}
