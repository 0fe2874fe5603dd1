//! Settings that libtorch keeps per thread.

use std::num::NonZeroUsize;

/// Prepares this thread to run models; call it once, first thing, on each worker thread.
///
/// - One operator may use `intra_op_threads` threads. `workers × intra_op_threads` should not exceed the cores
///   that the process may use.
/// - No gradients are kept.
/// - Modules run as they were saved. By default libtorch watches a module's first call and compiles it again
///   for what it saw on the second. For a module frozen by our converter the steady speed is the same, to
///   within the noise of `benches/executor.rs`, while the first two calls cost twice as much and the plan that
///   runs depends on which shapes came first.
pub fn configure_worker_thread(intra_op_threads: NonZeroUsize) {
    tch::set_num_threads(i32::try_from(intra_op_threads.get()).unwrap_or(i32::MAX));
    // The guard would turn gradients on again at the end of this function.
    std::mem::forget(tch::no_grad_guard());
    tch::jit::set_graph_executor_optimize(false);
}
