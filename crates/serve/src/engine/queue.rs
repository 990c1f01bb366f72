//! Requests that wait for a slot. Tenants take turns; each tenant's requests keep their order.

use std::collections::{BTreeMap, VecDeque};

use super::handle::Job;

#[derive(Default)]
pub(crate) struct Queue {
    tenants: BTreeMap<u64, VecDeque<Job>>,
    /// The tenant that was served last.
    last: u64,
    len: usize,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, job: Job) {
        self.len += 1;
        self.tenants.entry(job.request.tenant).or_default().push_back(job);
    }

    /// The first request of the tenant whose turn it is, if it is `ready`; else that of the next one, and so on.
    pub(crate) fn pop(&mut self, mut ready: impl FnMut(&Job) -> bool) -> Option<Job> {
        let after = self.tenants.range(self.last.wrapping_add(1)..);
        let before = self.tenants.range(..=self.last).filter(|_| self.last != u64::MAX);
        let turn = after.chain(before).find(|(_, jobs)| jobs.front().is_some_and(&mut ready));
        let tenant = *turn?.0;
        let jobs = self.tenants.get_mut(&tenant)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.tenants.remove(&tenant);
        }
        self.last = tenant;
        self.len -= usize::from(job.is_some());
        job
    }

    /// Takes out all requests that `out` says so of.
    pub(crate) fn take(&mut self, mut out: impl FnMut(&Job) -> bool) -> Vec<Job> {
        let mut taken = vec![];
        for jobs in self.tenants.values_mut() {
            // Nothing is moved where nothing is taken, which is the rule.
            if jobs.iter().any(&mut out) {
                let (gone, stay) = jobs.drain(..).partition(&mut out);
                *jobs = stay;
                taken.extend::<VecDeque<Job>>(gone);
            }
        }
        self.tenants.retain(|_, jobs| !jobs.is_empty());
        self.len -= taken.len();
        taken
    }
}
