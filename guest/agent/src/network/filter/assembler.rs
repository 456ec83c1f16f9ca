//! Programs for the kernel's virtual machine (Linux: `Documentation/bpf/standardization/instruction-set.rst`), instruction by
//! instruction, with jumps to labels. The kernel checks every program before it takes it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One instruction, as the kernel reads it on a little-endian machine (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register. 0 holds results, 1 to 5 arguments, which calls destroy; 6 to 9 are kept; 10 is the end of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u8);

pub const R0: Register = Register(0);
pub const R1: Register = Register(1);
pub const R2: Register = Register(2);
pub const R3: Register = Register(3);
pub const R4: Register = Register(4);
pub const R6: Register = Register(6);
pub const R7: Register = Register(7);
pub const R8: Register = Register(8);
pub const R9: Register = Register(9);
pub const STACK: Register = Register(10);

/// A value in memory has so many bits.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    U8 = 0x10,
    U16 = 0x08,
    U32 = 0x00,
    U64 = 0x18,
}

/// What is computed of a register and an operand.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    Multiply = 0x20,
    Divide = 0x30,
    And = 0x50,
    Move = 0xb0,
}

/// When to jump, of a register and an operand, both without signs.
#[derive(Clone, Copy, Debug)]
pub enum Condition {
    Equal = 0x10,
    Greater = 0x20,
    GreaterOrEqual = 0x30,
    NotEqual = 0x50,
}

/// Functions of the kernel (`enum bpf_func_id`).
#[derive(Clone, Copy, Debug)]
pub enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    KtimeGetNs = 5,
    SkbLoadBytes = 26,
}

/// Classes, and what goes with them.
const LOAD_IMMEDIATE: u8 = 0x18;
const LOAD: u8 = 0x61;
const STORE_IMMEDIATE: u8 = 0x62;
const STORE: u8 = 0x63;
const ATOMIC_U64: u8 = 0xdb;
const ALU32: u8 = 0x04;
const ALU64: u8 = 0x07;
const JUMP: u8 = 0x05;
const JUMP32: u8 = 0x06;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// The operand is a register.
const OF_REGISTER: u8 = 0x08;
/// The immediate of `LOAD_IMMEDIATE` is the descriptor of a map.
const PSEUDO_MAP: Register = Register(1);
/// Compare with register 0 and exchange; register 0 has what was there.
const COMPARE_EXCHANGE: i32 = 0xf1;

/// A place in a program.
#[derive(Clone, Copy, Debug)]
pub struct Label(usize);

/// A program that is being written.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps, by the place of the instruction.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A label that is to be placed.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places a label at the next instruction.
    pub fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// The program.
    ///
    /// # Errors
    /// A jump is too far, or leads nowhere.
    pub fn finish(mut self) -> io::Result<Vec<Instruction>> {
        for (from, label) in self.jumps {
            let distance = self.labels[label.0].and_then(|to| i16::try_from(to as i64 - from as i64 - 1).ok());
            self.code[from].offset = distance.ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(self.code)
    }

    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: to.0 | from.0 << 4, offset, immediate });
    }

    /// Loads from memory.
    pub fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) {
        self.push(LOAD | size as u8, to, from, offset, 0);
    }

    /// Stores a register.
    pub fn store(&mut self, size: Size, to: Register, offset: i16, from: Register) {
        self.push(STORE | size as u8, to, from, offset, 0);
    }

    /// Stores a number.
    pub fn store_number(&mut self, size: Size, to: Register, offset: i16, number: i32) {
        self.push(STORE_IMMEDIATE | size as u8, to, R0, offset, number);
    }

    /// Computes with a register.
    pub fn compute(&mut self, operation: Operation, to: Register, from: Register) {
        self.push(ALU64 | OF_REGISTER | operation as u8, to, from, 0, 0);
    }

    /// Computes with a number, of which the sign is extended.
    pub fn compute_number(&mut self, operation: Operation, to: Register, number: i32) {
        self.push(ALU64 | operation as u8, to, R0, 0, number);
    }

    /// Computes with the lower halves; the upper one becomes 0.
    pub fn compute_u32(&mut self, operation: Operation, to: Register, number: u32) {
        self.push(ALU32 | operation as u8, to, R0, 0, number as i32);
    }

    /// Sets a register to any number.
    pub fn set(&mut self, to: Register, number: u64) {
        self.push(LOAD_IMMEDIATE, to, R0, 0, number as u32 as i32);
        self.push(0, R0, R0, 0, (number >> 32) as u32 as i32);
    }

    /// Sets a register to a map.
    pub fn set_map(&mut self, to: Register, map: BorrowedFd<'_>) {
        self.push(LOAD_IMMEDIATE, to, PSEUDO_MAP, 0, map.as_raw_fd());
        self.push(0, R0, R0, 0, 0);
    }

    /// Sets a register to an address on the stack.
    pub fn set_stack(&mut self, to: Register, offset: i16) {
        self.compute(Operation::Move, to, STACK);
        self.compute_number(Operation::Add, to, offset.into());
    }

    /// Jumps.
    pub fn jump(&mut self, to: Label) {
        self.jump_by(JUMP, R0, R0, 0, to);
    }

    /// Jumps if a register compares so with another.
    pub fn jump_if(&mut self, condition: Condition, left: Register, right: Register, to: Label) {
        self.jump_by(JUMP | OF_REGISTER | condition as u8, left, right, 0, to);
    }

    /// Jumps if the lower half of a register compares so with a number.
    pub fn jump_if_u32(&mut self, condition: Condition, left: Register, right: u32, to: Label) {
        self.jump_by(JUMP32 | condition as u8, left, R0, right as i32, to);
    }

    /// Jumps if a register compares so with 0.
    pub fn jump_if_zero(&mut self, condition: Condition, left: Register, to: Label) {
        self.jump_by(JUMP | condition as u8, left, R0, 0, to);
    }

    fn jump_by(&mut self, code: u8, left: Register, right: Register, immediate: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(code, left, right, 0, immediate);
    }

    /// Puts `value` to where register 0 still is; register 0 has what was there.
    pub fn compare_exchange(&mut self, to: Register, offset: i16, value: Register) {
        self.push(ATOMIC_U64, to, value, offset, COMPARE_EXCHANGE);
    }

    /// Calls a function of the kernel.
    pub fn call(&mut self, helper: Helper) {
        self.push(CALL, R0, R0, 0, helper as i32);
    }

    /// Ends with a result.
    pub fn exit_with(&mut self, result: i32) {
        self.compute_number(Operation::Move, R0, result);
        self.push(EXIT, R0, R0, 0, 0);
    }
}
