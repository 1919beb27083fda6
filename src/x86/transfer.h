/*
 * Private to x86/: descriptors and stacks, as the routines that transfer control use them.
 *
 * The pattern of every transfer: read and check everything; write the new stack frame (which faults as a whole or not
 * at all); then commit registers, where nothing can fault any more. `ext` is the EXT bit of error codes (SDM 3A 6.13):
 * 1 while delivering an event from outside the program.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine/vcpu.h"
#include "x86/exceptions.h"
#include "x86/segments.h"

/* System segment and gate types (SDM 3A table 3-2). */
enum {
	TYPE_TSS16_AVAILABLE = 1,
	TYPE_LDT = 2,
	TYPE_TSS16_BUSY = 3,
	TYPE_CALL_GATE16 = 4,
	TYPE_TASK_GATE = 5,
	TYPE_INTERRUPT_GATE16 = 6,
	TYPE_TRAP_GATE16 = 7,
	TYPE_TSS_AVAILABLE = 9,
	TYPE_TSS_BUSY = 11,
	TYPE_CALL_GATE = 12,
	TYPE_INTERRUPT_GATE = 14,
	TYPE_TRAP_GATE = 15,
};
#define TYPE_BUSY_BIT 2u

/* A descriptor as read from its table, once. */
struct descriptor {
	uint64_t raw;     /* the first eight bytes */
	uint64_t upper;   /* bits 63:32 of a 16-byte system descriptor's base or offset, in place */
	uint64_t address; /* linear, for the accessed and busy bits */
	uint16_t selector;
};

static inline uint32_t descriptor_access(const struct descriptor *d)
{
	return (uint32_t)(d->raw >> 40) & 0xf0ff;
}

static inline unsigned descriptor_type(const struct descriptor *d)
{
	return (unsigned)(d->raw >> 40) & SEG_TYPE_MASK;
}

static inline unsigned descriptor_dpl(const struct descriptor *d)
{
	return (unsigned)(d->raw >> 45) & 3;
}

static inline bool descriptor_is_system(const struct descriptor *d)
{
	return !(descriptor_access(d) & SEG_S);
}

static inline bool descriptor_is_present(const struct descriptor *d)
{
	return descriptor_access(d) & SEG_P;
}

static inline bool descriptor_is_code(const struct descriptor *d)
{
	return (descriptor_access(d) & (SEG_S | SEG_CODE)) == (SEG_S | SEG_CODE);
}

static inline bool descriptor_is_conforming_code(const struct descriptor *d)
{
	return descriptor_is_code(d) && (descriptor_access(d) & SEG_CONFORMING);
}

static inline bool descriptor_is_writable_data(const struct descriptor *d)
{
	return (descriptor_access(d) & (SEG_S | SEG_CODE | SEG_WRITABLE)) == (SEG_S | SEG_WRITABLE);
}

/* Offset of a gate: all 64 bits when `upper` was read, else the low 32. */
static inline uint64_t descriptor_gate_offset(const struct descriptor *d)
{
	return (d->raw & 0xffff) | (d->raw >> 32 & 0xffff0000) | d->upper;
}

static inline uint16_t descriptor_gate_selector(const struct descriptor *d)
{
	return (uint16_t)(d->raw >> 16);
}

static inline bool selector_is_null(uint16_t selector)
{
	return !(selector & 0xfffc);
}

static inline uint32_t selector_error(uint16_t selector, uint32_t ext)
{
	return (selector & 0xfffcu) | ext;
}

/* Reads a descriptor; raises `vector` with the selector as error code when it is outside its table. The null selector
 * is the caller's business. */
void descriptor_read(struct vcpu *vcpu, struct descriptor *d, uint16_t selector, unsigned vector, uint32_t ext);
/* The same without raising: false when the selector is null or outside its table. (#PF is still raised.) */
bool descriptor_try(struct vcpu *vcpu, struct descriptor *d, uint16_t selector);
/* Long mode: reads the upper half of a 16-byte system descriptor; raises #GP(selector) when it is outside the table or
 * its type field is not 0. */
void descriptor_read_upper(struct vcpu *vcpu, struct descriptor *d, unsigned vector, uint32_t ext);
/* Sets the accessed bit, in memory by a locked operation and in `d`. May raise #PF. */
void descriptor_set_accessed(struct vcpu *vcpu, struct descriptor *d);
/* Sets or clears the busy bit of a TSS descriptor. False: it was so already (somebody else was faster). */
bool descriptor_set_busy(struct vcpu *vcpu, struct descriptor *d, bool busy);
/* The segment register that loading `d` gives; the selector's RPL is replaced by `rpl`. */
struct segment descriptor_segment(const struct descriptor *d, unsigned rpl);

/* A null segment register. `dpl` matters for SS alone: it is the CPL. */
struct segment segment_null(uint16_t selector, unsigned dpl);
/* A segment register of virtual-8086 mode. */
struct segment segment_vm86(uint16_t selector);

/*
 * A stack that is being built or taken down, beside the vCPU's own registers. Accesses are made at `cpl`.
 */
struct stack {
	struct vcpu *vcpu;
	const struct segment *ss;
	uint64_t pointer;
	uint64_t mask;  /* of the stack pointer: 0xffff, 0xffffffff or all */
	uint32_t error; /* error code of #SS when the frame is outside the segment */
	unsigned cpl;
};

/* The current stack. */
struct stack stack_current(struct vcpu *vcpu, uint32_t error);
/* A stack to switch to; `wide`: 64-bit pointer, no limit. */
struct stack stack_new(struct vcpu *vcpu, const struct segment *ss, uint64_t pointer, unsigned cpl, bool wide,
                       uint32_t error);
/*
 * Pushes `count` values of `size` bytes, the first one first (highest). Nothing is written when it faults. Moves
 * stack->pointer.
 */
#define STACK_FRAME_MAX 40
void stack_push_frame(struct stack *stack, const uint64_t *values, unsigned count, unsigned size);
/* Reads the value `index` slots of `size` bytes above the top. */
uint64_t stack_peek(struct stack *stack, unsigned index, unsigned size);
static inline void stack_release(struct stack *stack, uint64_t bytes)
{
	stack->pointer = (stack->pointer & ~stack->mask) | ((stack->pointer + bytes) & stack->mask);
}
/* Writes the pointer to RSP; the upper half of ESP is kept by 16-bit stacks, that of RSP is cleared by 32-bit ones. */
void stack_commit(const struct stack *stack);

/* The view of explicit accesses at `cpl`. x86_raise() goes back to the current one. */
void transfer_set_view(struct vcpu *vcpu, unsigned cpl);

/* SS:ESP (or RSP) for privilege level `cpl` from the current TSS; raises #TS. `ss` is 0 in long mode. */
void tss_read_stack(struct vcpu *vcpu, unsigned cpl, uint32_t ext, uint16_t *ss, uint64_t *sp);
/* RSP from the interrupt stack table, 1-7 (long mode). */
uint64_t tss_read_ist(struct vcpu *vcpu, unsigned ist, uint32_t ext);
/* Checks and reads the stack segment of an inner stack: #TS, #SS. */
void stack_segment_read(struct vcpu *vcpu, struct descriptor *d, uint16_t selector, unsigned cpl, uint32_t ext);

/* Commits a code segment and RIP; recomputes the MMU's view. CPL is SS.DPL: the caller commits SS first. */
void transfer_commit_code(struct vcpu *vcpu, const struct segment *cs, uint64_t rip);

/* After a return or transfer to an outer level: nulls data segments that the new level may not use (SDM 2A IRET,
 * RETURN-TO-OUTER-PRIVILEGE-LEVEL). */
void transfer_null_inner_segments(struct vcpu *vcpu, unsigned cpl);

/* For IRET and far RET: checks the target code segment, its stack segment (accessed bit set; the register to commit is
 * returned), and the offset. */
void return_code_segment(struct vcpu *vcpu, struct descriptor *code, uint16_t selector);
struct segment return_stack_segment(struct vcpu *vcpu, uint16_t selector, unsigned new_cpl, bool to_64bit);
void return_check_ip(struct vcpu *vcpu, const struct segment *cs, uint64_t ip);
/* Commits SS and RSP after a return that pops SS:SP. */
void return_commit_stack(struct vcpu *vcpu, const struct segment *ss, uint64_t sp, bool to_64bit);

/* x86_task_switch() with the EXT bit. */
void task_switch(struct vcpu *vcpu, uint16_t tss_selector, enum task_switch reason, uint64_t next_rip, bool has_error,
                 uint32_t error, uint32_t ext);

/* INT n in virtual-8086 mode through the 8086 program's own table (SDM 3B 20.3.3.4 and 20.3.3.5). */
void vm86_redirect_interrupt(struct vcpu *vcpu, unsigned vector, uint64_t next_rip);

/* An event on its way through the IDT; raises on faults of its own. */
struct event {
	uint64_t rip; /* to be pushed */
	uint32_t error;
	uint32_t ext;
	uint8_t vector;
	bool has_error;
	bool software; /* the gate's DPL is checked */
	bool set_rf;   /* in the pushed image */
};
void event_deliver(struct vcpu *vcpu, const struct event *event);
