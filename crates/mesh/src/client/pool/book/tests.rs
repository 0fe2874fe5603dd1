//! The book by itself: order, fairness, and that no credit is lost or made up.

use std::{cell::Cell, collections::HashMap, rc::Rc};

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};

use super::*;

/// Longer than any line here.
const LONG: Duration = Duration::from_secs(60);

/// A stream's endpoint as the tests set it.
#[derive(Clone)]
pub(in super::super) struct Fake {
    id: EndpointId,
    load: Rc<Cell<Option<f64>>>,
    /// Takes one message at a time.
    on_trial: Rc<Cell<bool>>,
    seats: Rc<Cell<usize>>,
}

/// A message counted on a [`Fake`].
pub(in super::super) struct Seat(Rc<Cell<usize>>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Fake {
    pub(in super::super) fn new() -> Self {
        let load = Rc::new(Cell::new(Some(1.0)));
        Self { id: EndpointId::next(), load, on_trial: Rc::default(), seats: Rc::default() }
    }

    pub(in super::super) fn id(&self) -> EndpointId {
        self.id
    }

    fn is_usable(&self) -> bool {
        self.load.get().is_some() && !(self.on_trial.get() && self.seats.get() > 0)
    }
}

impl Handle for Fake {
    type Seat = Seat;

    fn endpoint(&self) -> EndpointId {
        self.id
    }

    fn sit(&self) -> Option<Seat> {
        self.is_usable().then(|| {
            self.seats.set(self.seats.get() + 1);
            Seat(Rc::clone(&self.seats))
        })
    }

    fn load(&self) -> Option<f64> {
        self.load.get().filter(|_| self.is_usable())
    }
}

pub(in super::super) fn book() -> Book<u32, Fake> {
    Book::new(1, 100)
}

fn take(book: &mut Book<u32, Fake>, fake: &Fake, now: Instant) -> Option<Grant<u32, Fake>> {
    book.take(fake.id(), now, Fake::sit).map(|(_, grant)| grant)
}

fn wait(book: &mut Book<u32, Fake>, avoid: &[EndpointId]) -> (Ticket, oneshot::Receiver<()>) {
    let (wake, woken) = oneshot::channel();
    (book.queue(avoid.to_vec(), wake, LONG, Instant::now()).unwrap(), woken)
}

#[test]
fn a_message_takes_a_credit_and_its_answer_gives_it_back() {
    let (mut book, fake, now) = (book(), Fake::new(), Instant::now());
    let line = book.open(fake.clone(), 0, now);
    assert!(take(&mut book, &fake, now).is_none(), "nothing was granted");
    book.grant(line, 1, now);
    let mut grant = take(&mut book, &fake, now).unwrap();
    assert!(take(&mut book, &fake, now).is_none());
    book.answered(line, grant.id, now).unwrap().send(Reply::Answer(5)).unwrap();
    assert!(matches!(grant.reply.try_recv(), Ok(Reply::Answer(5))));
    assert!(book.answered(line, grant.id, now).is_none(), "answered twice");
    assert_eq!((book.of(fake.id())[0].credits, book.of(fake.id())[0].unanswered), (1, 0));
}

#[test]
fn a_free_credit_goes_to_who_has_waited_longest_and_would_go_there() {
    let (mut book, now) = (book(), Instant::now());
    let (one, two) = (Fake::new(), Fake::new());
    let (first, second) = (book.open(one.clone(), 0, now), book.open(two.clone(), 0, now));
    let (a, mut a_woken) = wait(&mut book, &[one.id()]);
    let (b, mut b_woken) = wait(&mut book, &[]);
    book.grant(first, 1, now);
    assert!(a_woken.try_recv().is_err() && b_woken.try_recv().is_ok());
    assert_eq!(book.claim(b).unwrap().1.line, first);
    book.grant(second, 1, now);
    assert!(a_woken.try_recv().is_ok());
    assert_eq!(book.claim(a).unwrap().1.line, second);
}

#[test]
fn an_endpoint_that_was_tried_is_taken_when_there_is_no_other() {
    let (mut book, now) = (book(), Instant::now());
    let (one, two) = (Fake::new(), Fake::new());
    let (first, second) = (book.open(one.clone(), 0, now), book.open(two.clone(), 0, now));
    let (ticket, mut woken) = wait(&mut book, &[one.id()]);
    book.grant(first, 1, now);
    assert!(woken.try_recv().is_err());
    book.leave(second);
    book.offer(now);
    assert!(woken.try_recv().is_ok() && book.claim(ticket).unwrap().1.line == first);
}

#[test]
fn who_comes_late_finds_a_credit_that_is_free_anywhere_on_the_least_loaded() {
    let (mut book, now) = (book(), Instant::now());
    let fakes = [Fake::new(), Fake::new(), Fake::new()];
    let lines: Vec<LineId> = fakes.iter().map(|fake| book.open(fake.clone(), 1, now)).collect();
    fakes[0].load.set(Some(9.0));
    fakes[2].load.set(None);
    let (ticket, mut woken) = wait(&mut book, &[]);
    assert!(woken.try_recv().is_ok());
    assert_eq!(book.claim(ticket).unwrap().1.line, lines[1]);
}

#[test]
fn who_gives_up_leaves_no_credit_behind() {
    let (mut book, fake, now) = (book(), Fake::new(), Instant::now());
    let line = book.open(fake.clone(), 0, now);
    let (first, woken) = wait(&mut book, &[]);
    let (second, mut next) = wait(&mut book, &[]);
    book.grant(line, 1, now);
    drop(woken);
    book.give_up(first, now);
    assert!(next.try_recv().is_ok(), "the credit of who was woken and left goes on");
    book.give_up(second, now);
    assert_eq!(book.of(fake.id())[0].credits, 1);
}

/// All of its credits are free, and many wait: one message tries it, and the next when that one is over.
#[test]
fn an_endpoint_on_trial_gets_one_message_at_a_time() {
    let (mut book, fake, now) = (book(), Fake::new(), Instant::now());
    fake.on_trial.set(true);
    fake.load.set(None);
    book.open(fake.clone(), 8, now);
    let mut waiting: Vec<_> = (0..4).map(|_| wait(&mut book, &[])).collect();
    fake.load.set(Some(1.0));
    let mut woken = |book: &mut Book<u32, Fake>| {
        book.offer(now);
        let all = waiting.iter_mut().map(|(ticket, woken)| woken.try_recv().ok().map(|()| *ticket));
        all.flatten().collect::<Vec<_>>()
    };
    let first = woken(&mut book);
    assert_eq!((first.len(), fake.seats.get()), (1, 1));
    let (seat, grant) = book.claim(first[0]).unwrap();
    assert!(woken(&mut book).is_empty() && take(&mut book, &fake, now).is_none(), "it is being tried");
    drop(seat);
    book.answered(grant.line, grant.id, now);
    let second = woken(&mut book);
    assert_eq!((second.len(), fake.seats.get()), (1, 1));
    book.give_up(second[0], now);
    assert_eq!(woken(&mut book).len(), 1, "who leaves before looking leaves the trial to the next");
    fake.on_trial.set(false);
    assert_eq!(woken(&mut book).len(), 1, "it passed");
    let standing = book.of(fake.id())[0];
    assert_eq!(standing.credits + standing.unanswered, 8);
}

#[test]
fn no_more_than_a_bound_may_wait() {
    let (mut book, now) = (Book::<u32, Fake>::new(1, 2), Instant::now());
    let mut queue = || book.queue(Vec::new(), oneshot::channel().0, LONG, now);
    assert!(queue().is_some() && queue().is_some() && queue().is_none());
}

#[test]
fn who_would_wait_for_too_long_is_told_at_once() {
    let (mut book, fake, mut now) = (book(), Fake::new(), Instant::now());
    let line = book.open(fake.clone(), 1, now);
    let mut waiting: Vec<_> = (0..16).map(|_| wait(&mut book, &[])).collect();
    // A credit comes back every 100 ms.
    for _ in 0..12 {
        let (ticket, _woken) = waiting.remove(0);
        let (_seat, grant) = book.claim(ticket).unwrap();
        now += Duration::from_millis(100);
        drop(book.answered(line, grant.id, now));
    }
    // The thirteenth has its credit; three are before whoever comes.
    let mut queue =
        |patience| book.queue(Vec::new(), oneshot::channel().0, Duration::from_millis(patience), now);
    assert!(queue(290).is_none());
    assert!(queue(310).is_some());
    assert!(queue(310).is_none());
}

#[test]
fn a_stream_that_is_left_finishes_what_it_carries() {
    let (mut book, fake, now) = (book(), Fake::new(), Instant::now());
    let line = book.open(fake.clone(), 8, now);
    let kept = take(&mut book, &fake, now).unwrap();
    let abandoned = take(&mut book, &fake, now).unwrap();
    book.leave(line);
    assert!(take(&mut book, &fake, now).is_none() && !book.is_finished(line));
    assert!(book.abandon(line, abandoned.id) && !book.is_finished(line));
    book.answered(line, kept.id, now).unwrap();
    assert!(book.is_finished(line));
}

#[test]
fn messages_are_spread_over_the_least_and_others_take_the_rest() {
    let (mut book, fake, now) = (Book::<u32, Fake>::new(2, 100), Fake::new(), Instant::now());
    let lines: Vec<LineId> = (0..3).map(|_| book.open(fake.clone(), 2, now)).collect();
    let taken: Vec<LineId> = (0..6).map(|_| take(&mut book, &fake, now).unwrap().line).collect();
    assert_eq!(taken, [lines[0], lines[1], lines[0], lines[1], lines[2], lines[2]]);
}

/// What a stream was granted is always where it must be: free, or out with a message.
#[test]
fn no_credit_is_lost_or_made_up_whatever_happens() {
    for seed in 0..500 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut book, now) = (Book::<u32, Fake>::new(1, 20), Instant::now());
        let fakes: Vec<Fake> = (0..3).map(|_| Fake::new()).collect();
        let mut granted: HashMap<LineId, usize> = HashMap::new();
        let mut out: Vec<Grant<u32, Fake>> = Vec::new();
        let mut waiting: Vec<(Ticket, oneshot::Receiver<()>)> = Vec::new();
        for _ in 0..400 {
            let fake = fakes.choose(&mut rng).unwrap();
            match rng.random_range(0..12) {
                0 => drop(granted.insert(book.open(fake.clone(), 3, now), 3)),
                1 => {
                    fake.load.set(rng.random_bool(0.7).then_some(1.0));
                    fake.on_trial.set(rng.random_bool(0.3));
                }
                2 => {
                    let avoid = if rng.random_bool(0.5) { vec![fake.id()] } else { Vec::new() };
                    let (wake, woken) = oneshot::channel();
                    waiting.extend(book.queue(avoid, wake, LONG, now).map(|ticket| (ticket, woken)));
                }
                3 if !waiting.is_empty() => {
                    let at = rng.random_range(0..waiting.len());
                    let (ticket, _) = waiting.swap_remove(at);
                    book.give_up(ticket, now);
                }
                4 => {
                    if let Some(line) = granted.keys().next().copied() {
                        match rng.random_bool(0.5) {
                            true => book.leave(line),
                            false => {
                                granted.remove(&line);
                                out.retain(|grant| grant.line != line);
                                book.close(line);
                            }
                        }
                    }
                }
                5..8 => out.extend(take(&mut book, fake, now)),
                8..11 if !out.is_empty() => {
                    let at = rng.random_range(0..out.len());
                    let grant = out.swap_remove(at);
                    match rng.random_range(0..3) {
                        0 => book.unsent(grant.line, grant.id, now),
                        1 => {
                            book.abandon(grant.line, grant.id);
                            book.answered(grant.line, grant.id, now);
                        }
                        _ => drop(book.answered(grant.line, grant.id, now)),
                    }
                }
                _ => book.offer(now),
            }
            waiting.retain_mut(|(ticket, woken)| match woken.try_recv() {
                Ok(()) => {
                    out.push(book.claim(*ticket).unwrap().1);
                    false
                }
                Err(_) => true,
            });
            for standing in fakes.iter().flat_map(|fake| book.of(fake.id())) {
                let all = granted[&standing.line];
                assert_eq!(standing.credits + standing.unanswered, all, "seed {seed}");
                let mine = out.iter().filter(|grant| grant.line == standing.line).count();
                assert_eq!(standing.unanswered, mine, "seed {seed}");
            }
        }
    }
}
