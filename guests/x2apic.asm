; x2APIC mode: how it is entered and left, registers as MSRs, what they refuse, self-IPI, ICR, interrupts (SDM 3A
; 10.12).
%define GUEST "x2apic"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

%macro READ 1				; register: its offset in the page
	mov	ecx, 0x800 + ((%1) >> 4)
	rdmsr
%endmacro
%macro WRITE 2-3 0
	mov	ecx, 0x800 + ((%1) >> 4)
	mov	eax, %2
	mov	edx, %3
	wrmsr
%endmacro
%define REFUSED REFUSED_ __?LINE?__,
%macro REFUSED_ 4
	mov	ecx, 0x800 + ((%2) >> 4)
	mov	eax, %3
	mov	edx, %4
	FAULT_	%1, EXC_GP, 0, wrmsr
%endmacro

guest_main:
	mov	eax, 1
	cpuid
	bt	ecx, 21
	jc	.have
	PRINT	GUEST, ": no x2APIC", 10
	ret
.have:
	; In xAPIC mode the MSRs do not exist.
	mov	ecx, 0x802
	FAULT	EXC_GP, 0, rdmsr
	call	apic_enable
	LAPIC_WRITE 0x80, 0x20
	LAPIC_READ ebx, 0x20
	shr	ebx, 24
	mov	[id], ebx
	; From xAPIC to x2APIC; state is kept.
	RDMSR_	MSR_APIC_BASE
	bts	eax, 10
	WORKS	wrmsr
	RDMSR_	MSR_APIC_BASE
	CHECK_BITS eax, 0xc00, 0xc00
	READ	0x20
	CHECK	rax, [id]
	READ	0x80
	CHECK	rax, 0x20
	WRITE	0x80, 0
	mov	rax, cr8
	CHECK	rax, 0
	READ	0x30
	CHECK_BITS eax, 0xf0, 0x10
	READ	0xf0
	CHECK_BITS eax, 0x1ff, 0x1ff
	; The logical ID follows from the ID.
	READ	0xd0
	CHECK	rax, 1				; cluster 0, bit 0
	; Registers that are not there, or are read-only, or write-only.
	mov	ecx, 0x80e			; DFR
	FAULT	EXC_GP, 0, rdmsr
	mov	ecx, 0x831			; the upper half of the ICR
	FAULT	EXC_GP, 0, rdmsr
	mov	ecx, 0x801
	FAULT	EXC_GP, 0, rdmsr
	mov	ecx, 0x80b			; EOI
	FAULT	EXC_GP, 0, rdmsr
	mov	ecx, 0x83f			; self-IPI
	FAULT	EXC_GP, 0, rdmsr
	REFUSED	0x20, 0, 0
	REFUSED	0x30, 0, 0
	REFUSED	0xa0, 0, 0
	REFUSED	0x100, 0, 0
	REFUSED	0x200, 0, 0
	REFUSED	0x390, 0, 0
	; Reserved bits.
	REFUSED	0x80, 0x100, 0
	REFUSED	0x80, 0, 1
	REFUSED	0xb0, 1, 0			; EOI: 0 only
	REFUSED	0xf0, 0x10000, 0
	REFUSED	0x320, 0x100000, 0
	REFUSED	0x280, 1, 0			; ESR: 0 only
	REFUSED	0x3f0, 0x100, 0
	REFUSED	0x300, 1 << 20, 0
	; Self-IPI, and EOI.
	HOOK	0x70, .handler
	WRITE	0x3f0, 0x70
	READ	0x230
	CHECK_BITS eax, 1 << 16, 1 << 16	; IRR
	sti
	nop
	nop
	cli
	CHECK32	[count], 1
	CHECK_BITS [isr], 1 << 16, 1 << 16
	; The ICR in one write: to itself by shorthand, by ID, to all.
	WRITE	0x300, 0x44070
	sti
	nop
	nop
	cli
	CHECK32	[count], 2
	WRITE	0x300, 0x04070, [id]
	sti
	nop
	nop
	cli
	CHECK32	[count], 3
	WRITE	0x300, 0x84070
	sti
	nop
	nop
	cli
	CHECK32	[count], 4
	WRITE	0x300, 0xc4070			; all but itself
	WRITE	0x300, 0x04070, 0x77		; nobody
	sti
	nop
	nop
	cli
	CHECK32	[count], 4
	WRITE	0x300, 0x04070, 0xffffffff	; broadcast
	sti
	nop
	nop
	cli
	CHECK32	[count], 5
	WRITE	0x300, 0x04870, 1		; logical
	sti
	nop
	nop
	cli
	CHECK32	[count], 6
	READ	0x300
	CHECK_BITS eax, 0xfff, 0x870
	CHECK	rdx, 1
	; The timer.
	WRITE	0x3e0, 0xb
	WRITE	0x320, 0x70
	WRITE	0x380, 10000
	sti
	WAIT_UNTIL e, cmp dword [count], 7
	cli
	; The page does not answer any more (nothing there must change).
	; Leaving: only by way of disabled.
	RDMSR_	MSR_APIC_BASE
	btr	eax, 10
	FAULT	EXC_GP, 0, wrmsr		; x2APIC to xAPIC
	btr	eax, 11
	WORKS	wrmsr				; to disabled
	bts	eax, 10
	FAULT	EXC_GP, 0, wrmsr		; x2APIC without enable
	RDMSR_	MSR_APIC_BASE
	CHECK_BITS eax, 0xc00, 0
	mov	ecx, 0x802
	FAULT	EXC_GP, 0, rdmsr
	RDMSR_	MSR_APIC_BASE
	bts	eax, 11
	bts	eax, 10
	FAULT	EXC_GP, 0, wrmsr		; from disabled straight to x2APIC
	btr	eax, 10
	WORKS	wrmsr				; to xAPIC
	LAPIC_READ eax, 0xf0
	CHECK_BITS eax, 0x100, 0		; disabled by software, as after reset
	LAPIC_READ eax, 0x20
	shr	eax, 24
	CHECK	rax, [id]
	call	apic_enable
	HOOK	0x70, irq_apic
	SELF_IPI 0x70
	sti
	nop
	nop
	cli
	CHECK32	[IRQ_COUNT(0x70)], 1
	ret
.handler:
	READ	0x130
	mov	[isr], eax
	inc	dword [count]
	WRITE	0xb0, 0
	ret

section .data
	align	8
id:	dq 0
count:	dd 0
isr:	dd 0
