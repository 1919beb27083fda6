; The local APIC's timer: one-shot, periodic, TSC deadline; divider, counts, masking, HLT (SDM 3A 10.5.4).
%define GUEST "lapic_timer"
%define GUEST_BITS 64
%include "guest.inc"
%include "interrupts.inc"

V	equ 0x60
LVT	equ 0x320
INITIAL	equ 0x380
CURRENT	equ 0x390
DIVIDE	equ 0x3e0

guest_main:
	call	apic_enable
	HOOK	V, irq_apic
	call	count
	call	one_shot
	call	periodic
	call	deadline
	ret

; TIMER_QUIET: it stands, what was on its way is taken and forgotten. Interrupts are disabled then.
%macro TIMER_QUIET 0
	cli
	LAPIC_WRITE INITIAL, 0
	sti
	nop
	nop
	cli
	call	irq_forget
%endmacro

; (The host may be away at any moment, and interrupts that come meanwhile are one: what depends on time has several tries.)
count:
	; Divide by 16, masked: it counts down, stops at 0.
	LAPIC_WRITE LVT, 0x10000 | V
	mov	ebp, 2000
.try:
	LAPIC_WRITE DIVIDE, 3
	mov	edi, ticks
	call	.measure			; in 10 ms, divided by 16
	LAPIC_READ eax, DIVIDE
	CHECK	rax, 3
	LAPIC_READ eax, INITIAL
	CHECK32	eax, 0xffffffff
	; Another divider: 16 times as fast.
	LAPIC_WRITE DIVIDE, 0xb			; by 1
	mov	edi, fast_ticks
	call	.measure
	dec	ebp
	jz	.right
	cmp	ebp, 2000 - 5			; the shortest of five at least
	ja	.try
	mov	ebx, [fast_ticks]
	mov	eax, [ticks]
	shl	eax, 3
	cmp	ebx, eax
	jbe	.try
	shl	eax, 2
	cmp	ebx, eax
	jae	.try
.right:
	test	ebp, ebp
	HOLDS	nz, "divider 1 is 8 to 32 times as fast as 16"
	; Initial count 0 stops it.
	LAPIC_WRITE INITIAL, 0
	LAPIC_READ eax, CURRENT
	CHECK	rax, 0
	; A count that ran out stays 0.
	LAPIC_WRITE INITIAL, 100
	mov	ecx, 5
	call	delay_ms
	LAPIC_READ eax, CURRENT
	CHECK	rax, 0
	; Writes to the current count do nothing.
	LAPIC_WRITE CURRENT, 55
	LAPIC_READ eax, CURRENT
	CHECK	rax, 0
	ret
; How far it counts in 10 ms: the least so far, at RDI.
.measure:
	LAPIC_WRITE INITIAL, 0xffffffff
	LAPIC_READ ebx, CURRENT
	mov	ecx, 10
	call	delay_ms
	LAPIC_READ edx, CURRENT
	cmp	edx, ebx
	HOLDS	b, "the count goes down"
	sub	ebx, edx
	cmp	ebx, [rdi]
	jae	.longer
	mov	[rdi], ebx
.longer:
	ret

one_shot:
	LAPIC_WRITE DIVIDE, 3
	LAPIC_WRITE LVT, V
	call	irq_forget
	sti
	mov	eax, [ticks]
	LAPIC_WRITE INITIAL, eax		; 10 ms
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(V)], 1
	mov	ecx, 30
	call	delay_ms
	CHECK32	[IRQ_COUNT(V)], 1
	; HLT until it comes.
	call	irq_forget
	cli
	LAPIC_WRITE INITIAL, eax
	sti
	hlt
	cli
	CHECK32	[IRQ_COUNT(V)], 1
	; Masked when it runs out: nothing is remembered.
	call	irq_forget
	LAPIC_WRITE LVT, 0x10000 | V
	LAPIC_WRITE INITIAL, 1000
	mov	ecx, 5
	call	delay_ms
	LAPIC_WRITE LVT, V
	sti
	mov	ecx, 5
	call	delay_ms
	cli
	CHECK32	[IRQ_COUNT(V)], 0
	; Written again while it runs: it starts anew.
	mov	ebp, 300
.restart:
	TIMER_QUIET
	mov	eax, [ticks]
	LAPIC_WRITE INITIAL, eax
	shl	eax, 3				; 80 ms
	sti
	mov	ebx, 5
.again:
	mov	ecx, 2
	call	delay_ms
	LAPIC_WRITE INITIAL, eax
	dec	ebx
	jnz	.again
	cli
	LAPIC_WRITE INITIAL, 0
	sti
	nop
	nop
	cli
	cmp	dword [IRQ_COUNT(V)], 0
	je	.restarted
	dec	ebp
	jnz	.restart
.restarted:
	test	ebp, ebp
	HOLDS	nz, "restarted one-shot"
	; IRR while IF is clear.
	TIMER_QUIET
	LAPIC_WRITE INITIAL, 100
	mov	edi, LAPIC
	WAIT_UNTIL nz, test dword [rdi + 0x200 + (V / 32) * 0x10], 1 << (V % 32)
	sti
	nop
	nop
	cli
	CHECK32	[IRQ_COUNT(V)], 1
	ret

periodic:
	call	irq_forget
	LAPIC_WRITE LVT, 0x20000 | V
	mov	eax, [ticks]
	LAPIC_WRITE INITIAL, eax		; 100 Hz
	sti
.halt:
	hlt
	cmp	dword [IRQ_COUNT(V)], 10
	jb	.halt
	call	check_passed
	; The rate, by the 8254. Ticks that come while the processor is away are one, so this has several tries.
	mov	ebp, 300
.rate:
	call	irq_forget
	mov	ecx, 100
	call	delay_ms
	cmp	dword [IRQ_COUNT(V)], 8
	jae	.enough
	dec	ebp
	jnz	.rate
.enough:
	test	ebp, ebp
	HOLDS	nz, "8 periodic interrupts in 100 ms"
	; The count is loaded again and again.
	mov	ebp, 100
.count:	LAPIC_READ eax, CURRENT
	cmp	eax, [ticks]
	HOLDS	be, "periodic count"
	dec	ebp
	jnz	.count
	TIMER_QUIET
	sti
	mov	ecx, 30
	call	delay_ms
	cli
	CHECK32	[IRQ_COUNT(V)], 0
	LAPIC_WRITE LVT, 0x10000
	ret

deadline:
	mov	eax, 1
	cpuid
	bt	ecx, 24
	jc	.have
	PRINT	GUEST, ": no TSC deadline", 10
	ret
.have:
	; Outside deadline mode the MSR reads 0 and writes vanish.
	LAPIC_WRITE LVT, V
	WRMSR_	MSR_TSC_DEADLINE, 0, 0x7fffffff
	RDMSR_	MSR_TSC_DEADLINE
	CHECK	rax, 0
	CHECK	rdx, 0
	; How many TSC ticks 10 ms have.
	rdtsc
	mov	ebx, eax
	mov	ecx, 10
	call	delay_ms
	rdtsc
	sub	eax, ebx
	mov	[tsc_ticks], eax
	call	irq_forget
	LAPIC_WRITE LVT, 0x40000 | V
	mfence
	; The initial count does nothing in this mode.
	LAPIC_WRITE INITIAL, 1000
	LAPIC_READ eax, CURRENT
	CHECK	rax, 0
	sti
	rdtsc
	add	eax, [tsc_ticks]
	adc	edx, 0
	mov	r12d, eax
	mov	r13d, edx
	mov	ecx, MSR_TSC_DEADLINE
	wrmsr
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(V)], 1
	rdtsc
	shl	rdx, 32
	or	rdx, rax
	shl	r13, 32
	or	r13, r12
	cmp	rdx, r13
	HOLDS	ae, "not before the deadline"
	RDMSR_	MSR_TSC_DEADLINE			; 0 after it fired
	or	eax, edx
	CHECK	rax, 0
	; Far away: it reads back; 0 disarms.
	rdtsc
	add	edx, 0x1000
	mov	ebx, edx
	mov	ecx, MSR_TSC_DEADLINE
	wrmsr
	rdmsr
	CHECK	rdx, rbx
	xor	eax, eax
	xor	edx, edx
	wrmsr
	rdmsr
	or	eax, edx
	CHECK	rax, 0
	; In the past: at once.
	call	irq_forget
	WRMSR_	MSR_TSC_DEADLINE, 1
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(V)], 1
	; Armed, then disarmed before its time: never.
	mov	ebp, 300
.arm:
	cli
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mov	ebx, [tsc_ticks]
	lea	r12, [rax + rbx * 2]
	mov	rax, r12
	mov	rdx, r12
	shr	rdx, 32
	mov	ecx, MSR_TSC_DEADLINE
	wrmsr
	xor	eax, eax
	xor	edx, edx
	wrmsr
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	cmp	rax, r12
	jb	.in_time
	sti
	nop
	nop
	dec	ebp
	jnz	.arm
.in_time:
	test	ebp, ebp
	HOLDS	nz, "disarmed in time"
	call	irq_forget
	sti
.wait:
	mov	ecx, 40
	call	delay_ms
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	cmp	rax, r12
	jb	.wait
	mov	ecx, 10
	call	delay_ms
	CHECK32	[IRQ_COUNT(V)], 0
	; HLT and deadline, several times.
	cli
	call	irq_forget
	mov	ebp, 10
.halt:
	rdtsc
	add	eax, [tsc_ticks]
	adc	edx, 0
	mov	ecx, MSR_TSC_DEADLINE
	wrmsr
	sti
	hlt
	cli
	dec	ebp
	jnz	.halt
	CHECK32	[IRQ_COUNT(V)], 10
	; A change of the TSC moves the deadline.
	rdtsc
	add	edx, 0x1000
	mov	ecx, MSR_TSC_DEADLINE
	wrmsr
	call	irq_forget
	sti
	WRMSR_	MSR_TSC, 0, 0x7fff0000
	WAIT_UNTIL e, cmp dword [IRQ_COUNT(V)], 1
	cli
	LAPIC_WRITE LVT, 0x10000
	ret

section .data
ticks:	dd -1
fast_ticks: dd -1
tsc_ticks: dd 0
