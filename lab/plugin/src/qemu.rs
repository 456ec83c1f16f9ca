//! What QEMU offers plugins (`docs/devel/tcg-plugins.rst` and `qemu-plugin.h` of QEMU 10.0, version 4 of the interface).

use std::ffi::{c_char, c_int, c_uint, c_void};

/// Oldest version of the interface with all that is used here: that of QEMU 9.2.
pub const VERSION: c_int = 4;

/// An opaque type of QEMU or of GLib.
macro_rules! opaque {
    ($($name:ident),*) => {
        $(
            #[repr(C)]
            pub struct $name {
                _data: [u8; 0],
            }
        )*
    };
}

opaque!(Block, Instruction, Scoreboard, Register);

/// `qemu_plugin_u64`: a number that every processor has one of.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PerProcessor {
    pub scoreboard: *mut Scoreboard,
    pub offset: usize,
}

/// `qemu_plugin_reg_descriptor`.
#[repr(C)]
pub struct RegisterDescriptor {
    pub register: *mut Register,
    pub name: *const c_char,
    pub feature: *const c_char,
}

/// `GArray` and `GByteArray` of GLib, as far as they are public.
#[repr(C)]
pub struct Array<T> {
    pub data: *mut T,
    pub length: c_uint,
}

/// `enum qemu_plugin_op`: to add to a number.
pub const ADD: c_int = 0;
/// `enum qemu_plugin_cond`: a number is at least another.
pub const AT_LEAST: c_int = 7;
/// `enum qemu_plugin_cb_flags`: the callback reads registers.
pub const READS_REGISTERS: c_int = 1;

pub type Translated = extern "C" fn(id: u64, block: *mut Block);
pub type ProcessorStarted = extern "C" fn(id: u64, processor: c_uint);
pub type Executed = extern "C" fn(processor: c_uint, data: *mut c_void);

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_init_cb(id: u64, callback: ProcessorStarted);
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: Translated);
    pub fn qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(
        block: *mut Block,
        operation: c_int,
        entry: PerProcessor,
        operand: u64,
    );
    pub fn qemu_plugin_register_vcpu_tb_exec_cond_cb(
        block: *mut Block,
        callback: Executed,
        flags: c_int,
        condition: c_int,
        entry: PerProcessor,
        operand: u64,
        data: *mut c_void,
    );
    pub fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    pub fn qemu_plugin_tb_vaddr(block: *const Block) -> u64;
    pub fn qemu_plugin_tb_get_insn(block: *const Block, index: usize) -> *mut Instruction;
    pub fn qemu_plugin_insn_haddr(instruction: *const Instruction) -> *mut c_void;
    pub fn qemu_plugin_scoreboard_new(size: usize) -> *mut Scoreboard;
    pub fn qemu_plugin_u64_get(entry: PerProcessor, processor: c_uint) -> u64;
    pub fn qemu_plugin_u64_set(entry: PerProcessor, processor: c_uint, value: u64);
    pub fn qemu_plugin_get_registers() -> *mut Array<RegisterDescriptor>;
    pub fn qemu_plugin_read_register(register: *mut Register, buffer: *mut Array<u8>) -> c_int;

    pub fn g_byte_array_new() -> *mut Array<u8>;
    pub fn g_byte_array_set_size(array: *mut Array<u8>, length: c_uint) -> *mut Array<u8>;
}
