//! The device filter of a cgroup v2, an eBPF program.
//!
//! cgroup v1 has files for this; on v2 a small program attached to the cgroup decides for each open and mknod. The
//! program here is built from a list of allowed devices and needs neither a compiler nor maps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Devices a cgroup may use; everything else is refused. `None` is a wildcard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Block device instead of character device.
    pub block: bool,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// Only `mknod` is allowed, not opening.
    pub make_only: bool,
}

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high four.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE_64: u8 = 0xb7;
const MOVE_REGISTER_32: u8 = 0xbc;
const AND_IMMEDIATE_32: u8 = 0x54;
const SHIFT_RIGHT_IMMEDIATE_32: u8 = 0x74;
const JUMP_NOT_EQUAL_32: u8 = 0x56;
const JUMP_ANY_SET_32: u8 = 0x46;
const EXIT: u8 = 0x95;

/// `BPF_DEVCG_DEV_BLOCK`, `BPF_DEVCG_DEV_CHAR`.
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;
/// `BPF_DEVCG_ACC_READ | BPF_DEVCG_ACC_WRITE`.
const ACCESS_READ_WRITE: i32 = 2 | 4;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

/// The program: r2 type, r3 access, r4 major, r5 minor; each rule jumps to the next one when it does not fit.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REGISTER_32, 3, 2, 0, 0),
        instruction(AND_IMMEDIATE_32, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMMEDIATE_32, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = if rule.block { TYPE_BLOCK } else { TYPE_CHARACTER };
        let mut tests = vec![instruction(JUMP_NOT_EQUAL_32, 2, 0, 0, kind)];
        if rule.make_only {
            tests.push(instruction(JUMP_ANY_SET_32, 3, 0, 0, ACCESS_READ_WRITE));
        }
        tests.extend(rule.major.map(|major| instruction(JUMP_NOT_EQUAL_32, 4, 0, 0, major as i32)));
        tests.extend(rule.minor.map(|minor| instruction(JUMP_NOT_EQUAL_32, 5, 0, 0, minor as i32)));
        let length = tests.len();
        for (position, test) in tests.iter_mut().enumerate() {
            // Over the remaining tests and the two instructions that allow.
            test.offset = (length - position - 1 + 2) as i16;
        }
        code.extend(tests);
        code.extend([instruction(MOVE_IMMEDIATE_64, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    }
    code.extend([instruction(MOVE_IMMEDIATE_64, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

/// Head of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes missing fields as zero.
#[repr(C)]
struct LoadArgument {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
}

/// Head of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachArgument {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// Lets the processes of `cgroup`, an open cgroup v2 directory, use only the devices in `rules`.
///
/// The filter lives as long as the cgroup.
///
/// # Errors
/// The kernel's, for example EPERM without CAP_BPF or CAP_SYS_ADMIN.
pub fn allow_devices(cgroup: impl AsFd, rules: &[DeviceRule]) -> io::Result<()> {
    let code = program(rules);
    let load = LoadArgument {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
    };
    // SAFETY: the structure is the documented head of the argument, its size is passed, and the pointers outlive the
    // call; the kernel verifies the program itself.
    let loaded = crate::check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<LoadArgument>())
    })?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded as i32) };
    let attach = AttachArgument {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: as above; both descriptors are open during the call.
    crate::check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<AttachArgument>())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_of_a_rule_lead_to_the_next_rule() {
        let rules = [
            DeviceRule { block: false, major: Some(1), minor: Some(3), make_only: false },
            DeviceRule { block: true, major: None, minor: None, make_only: true },
        ];
        let code = program(&rules);
        // Prologue of 6, then 3 tests and 2 to allow, then 2 tests and 2 to allow, then 2 to refuse.
        assert_eq!(code.len(), 6 + 5 + 4 + 2);
        for (position, test) in code.iter().enumerate() {
            if test.code == JUMP_NOT_EQUAL_32 || test.code == JUMP_ANY_SET_32 {
                let target = position + 1 + test.offset as usize;
                assert!(target == 11 || target == 15, "jump at {position} leads to {target}");
            }
        }
    }
}
