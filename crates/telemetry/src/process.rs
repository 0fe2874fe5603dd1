//! What the system says of this process, by the names that every Prometheus client uses. Read when somebody asks.

use std::{fmt::Write, fs};

/// Clock ticks per second, the same on every Linux that we know: `getconf CLK_TCK`.
const TICKS: f64 = 100.0;
/// What `status` counts memory in.
const KILOBYTE: u64 = 1024;

/// As Prometheus's text; a figure that the system does not give is left out.
pub(crate) fn render() -> String {
    let mut text = String::new();
    let mut add = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n").ok();
        }
    };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may hold anything; the fields after it are counted from the third (proc_pid_stat(5)).
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS);
    add("process_cpu_seconds_total", "counter", "CPU time used, user and system", cpu);
    add("process_threads", "gauge", "Threads of the process", field(20));
    let start = field(22).zip(boot_time()).map(|(ticks, boot)| boot + ticks / TICKS);
    add("process_start_time_seconds", "gauge", "When the process started, since 1970", start);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = |line: &str| number(&status, line).map(|kilobytes| kilobytes * KILOBYTE as f64);
    add("process_resident_memory_bytes", "gauge", "Memory in use that is not swapped out", memory("VmRSS:"));
    add("process_virtual_memory_bytes", "gauge", "Address space in use", memory("VmSize:"));
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    add("process_open_fds", "gauge", "Open file descriptors", open);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    add("process_max_fds", "gauge", "File descriptors allowed", number(&limits, "Max open files"));
    text
}

/// The first number behind the line's beginning.
fn number(text: &str, beginning: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(beginning))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn boot_time() -> Option<f64> {
    number(&fs::read_to_string("/proc/stat").ok()?, "btime ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_threads_memory_and_files() {
        let text = render();
        let value =
            |name: &str| number(&text, &format!("{name} ")).unwrap_or_else(|| panic!("{name} in {text}"));
        assert!(value("process_threads") >= 1.0);
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") > value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_start_time_seconds") > 1.7e9);
    }
}
