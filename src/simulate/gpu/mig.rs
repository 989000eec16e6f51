//! Dividing a card into MIG devices, as `nvidia-smi mig` would.

use super::{
    change::card,
    command::{Wrong, wrong},
    state::{Line, State},
};

/// A way to divide a card with seven compute slices and eight memory slices. The sizes, and the numbers of the
/// first instance of each, are those of the A100's and H200's profiles.
struct Profile {
    slices: u64,
    memory_eighths: u64,
    multiprocessors: u64,
    first_instance: u64,
}

const WHOLE: Profile =
    Profile { slices: 7, memory_eighths: 8, multiprocessors: 132, first_instance: 0 };
const HALF: Profile =
    Profile { slices: 3, memory_eighths: 4, multiprocessors: 60, first_instance: 1 };
const THIRD: Profile =
    Profile { slices: 2, memory_eighths: 2, multiprocessors: 32, first_instance: 3 };
const SEVENTH: Profile =
    Profile { slices: 1, memory_eighths: 1, multiprocessors: 16, first_instance: 7 };

/// The largest profile of which there is room for so many.
const fn profile(parts: u64) -> Profile {
    match parts {
        0 | 1 => WHOLE,
        2 => HALF,
        3 => THIRD,
        _ => SEVENTH,
    }
}

/// Divides the card into `parts` devices, or with none makes it whole.
pub(super) fn divide(state: &mut State, gpu: usize, parts: u64) -> Result<(), Wrong> {
    let busy = state.lines().any(|line| line.kind() == "proc" && line.is_about(gpu));
    let line = card(state, gpu)?;
    if line.get("mig").is_none() {
        return Err(wrong(format_args!("GPU {gpu} cannot be divided; an h200 or a100 can")));
    }
    if busy {
        return Err(wrong(format_args!("processes are on GPU {gpu}: end them first")));
    }
    line.set("mig", u64::from(parts > 0));
    let name = line.get("name").unwrap_or("NVIDIA").to_owned();
    let total = line.number("mem_total").unwrap_or(0);
    state.remove(|line| line.kind() == "mig" && line.is_about(gpu));
    let profile = profile(parts);
    let memory = total / 8 * profile.memory_eighths;
    for part in 0..parts {
        let instance = profile.first_instance + part;
        let mut line = Line::new(format!("mig {gpu} {part}"));
        line.set("uuid", format_args!("MIG-be27d000-0000-5000-8000-{gpu:06x}{instance:06x}"));
        line.set(
            "name",
            format_args!("{name} MIG {}g.{}gb", profile.slices, memory.div_ceil(1 << 30)),
        );
        let numbers = [
            ("gi", instance),
            ("ci", 0),
            ("mem_total", memory),
            ("mem_used", 0),
            ("mem_free", memory),
            ("sm_count", profile.multiprocessors),
            ("slices", profile.slices),
            ("ci_slices", profile.slices),
            ("copy_engines", profile.slices),
        ];
        numbers.iter().for_each(|(key, value)| line.set(key, value));
        state.push(line);
    }
    Ok(())
}
