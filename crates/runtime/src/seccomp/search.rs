//! The unconditional part of a filter, as a binary search over ranges of call numbers.
//!
//! `seccompiler` compares with one call after the other: about 1,600 instructions for the default list, which the
//! kernel checks, compiles and tries with every call number each time a process loads it. That was 1.5 ms of a
//! container's start and of every exec; the search takes a fifth of the instructions and seven steps.

use sampan_kernel::seccomp::Instruction;

/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`.
const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
const JUMP_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const JUMP_AT_LEAST: u16 = 0x35;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Offset of the call's number in `struct seccomp_data`.
const NUMBER: u32 = 0;
/// Offset of the architecture.
const ARCHITECTURE: u32 = 4;
/// `SECCOMP_RET_KILL_PROCESS`.
const KILL_PROCESS: u32 = 0x8000_0000;
/// A jump to what follows the search; its distance is known when everything is there.
const MISS: u32 = u32::MAX;

fn instruction(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

/// A program that returns `action` for the calls in `numbers` (sorted), kills on another architecture, and goes on with
/// `rest` otherwise.
pub(super) fn program(
    architecture: u32,
    numbers: &[u32],
    action: u32,
    rest: &[Instruction],
) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, ARCHITECTURE, 0, 0),
        instruction(JUMP_EQUAL, architecture, 1, 0),
        instruction(RETURN, KILL_PROCESS, 0, 0),
        instruction(LOAD, NUMBER, 0, 0),
    ];
    if !numbers.is_empty() {
        program.extend(search(&ranges(numbers), action));
    }
    let end = program.len();
    for (position, instruction) in program.iter_mut().enumerate() {
        if instruction.code == JUMP && instruction.operand == MISS {
            instruction.operand = (end - position - 1) as u32;
        }
    }
    program.extend_from_slice(rest);
    program
}

/// A program that returns the same for every call.
pub(super) fn constant(action: u32) -> Vec<Instruction> {
    vec![instruction(RETURN, action, 0, 0)]
}

/// Neighbouring numbers as ranges, both ends included.
fn ranges(numbers: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

/// Halves the ranges until one is left. `ranges` is not empty.
fn search(ranges: &[(u32, u32)], action: u32) -> Vec<Instruction> {
    if let [(first, last)] = ranges {
        return vec![
            instruction(JUMP_AT_LEAST, *first, 0, 2),
            instruction(JUMP_GREATER, *last, 1, 0),
            instruction(RETURN, action, 0, 0),
            instruction(JUMP, MISS, 0, 0),
        ];
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let below = search(lower, action);
    let mut code = match u8::try_from(below.len()) {
        Ok(distance) => vec![instruction(JUMP_AT_LEAST, upper[0].0, distance, 0)],
        // Conditional jumps reach 255 instructions.
        Err(_) => {
            vec![instruction(JUMP_AT_LEAST, upper[0].0, 0, 1), instruction(JUMP, below.len() as u32, 0, 0)]
        }
    };
    code.extend(below);
    code.extend(search(upper, action));
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::tests::run;

    const HERE: u32 = 7;

    fn verdict(program: &[Instruction], architecture: u32, number: u32) -> u32 {
        let data: Vec<u8> = [number, architecture].iter().flat_map(|word| word.to_ne_bytes()).collect();
        run(program, &data)
    }

    #[test]
    fn every_number_is_found_and_no_other() {
        for numbers in [
            vec![],
            vec![0],
            vec![5],
            vec![1, 2, 3],
            vec![0, 2, 4, 5, 6, 9],
            (0..400).filter(|number| number % 2 == 0).collect(),
            (0..400).filter(|number| number % 7 != 3).collect::<Vec<u32>>(),
        ] {
            let program = program(HERE, &numbers, 1, &constant(2));
            for number in (0..500).chain([0x4000_0001, u32::MAX]) {
                let expected = if numbers.contains(&number) { 1 } else { 2 };
                assert_eq!(verdict(&program, HERE, number), expected, "{number} in {numbers:?}");
            }
            assert_eq!(verdict(&program, HERE + 1, 0), KILL_PROCESS);
        }
    }
}
