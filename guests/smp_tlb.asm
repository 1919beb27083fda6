; TLB shoot-down by IPI, page tables changed under running processors, accessed and dirty bits set by several at once,
; code that another processor modifies (SDM 3A 4.10.5, 8.1.3).
%define GUEST "smp_tlb"
%define GUEST_BITS 64
%define GUEST_CPUS 4
%include "guest.inc"
%include "smp.inc"

AREA	equ 0x8000000000
A	equ FREE_MEMORY
B	equ FREE_MEMORY + 0x1000
%define ALL (PTE_P | PTE_W | PTE_U)

section .bss
	alignb	4096
t_pdpt:	resb	4096
t_pd:	resb	4096
t_pt:	resb	4096
section .text

guest_main:
	mov	qword [pml4 + 8], t_pdpt + ALL
	mov	qword [t_pdpt], t_pd + ALL
	mov	qword [t_pd], t_pt + ALL
	mov	dword [A], 0xaaaa
	mov	dword [B], 0xbbbb
	call	smp_start
	call	shoot_down
	call	dirty
	call	modify_code
	call	modify_running
	ret

; Others read a page over and over; processor 0 moves it, shoots, and from then on nobody may see the old one.
shoot_down:
	HOOK	0x60, .flush
	mov	qword [t_pt], A + ALL
	mov	dword [stop], 0
	mov	dword [errors], 0
	mov	dword [allowed], 0xaaaa
	mov	ecx, 1
.start:
	ON_CPU	rcx, .reader
	inc	ecx
	cmp	ecx, GUEST_CPUS
	jb	.start
	WAIT_UNTIL e, cmp dword [running], GUEST_CPUS - 1
	mov	ebp, 100
.next:
	mov	dword [allowed], 0		; either, for now
	mfence
	mov	rax, [t_pt]
	xor	rax, A ^ B
	mov	[t_pt], rax
	mov	dword [flushed], 0
	LAPIC_WRITE 0x300, 0x000c4060
	WAIT_UNTIL e, cmp dword [flushed], GUEST_CPUS - 1
	mov	eax, 0xaaaa
	test	dword [t_pt], 0x1000
	jz	.a
	mov	eax, 0xbbbb
.a:	mov	[allowed], eax
	mfence
	mov	ecx, 300
.pause:	pause
	loop	.pause
	dec	ebp
	jnz	.next
	mov	dword [stop], 1
	call	smp_wait
	CHECK32	[errors], 0
	cmp	qword [reads], 100
	HOLDS	a, "readers ran"
	ret
.reader:
	mov	rbx, AREA
	mov	eax, [rbx]
	lock inc dword [running]
	sti
.read:
	mov	ecx, [allowed]
	mfence
	mov	eax, [rbx]
	mfence
	cmp	ecx, [allowed]			; it must not have changed in between
	jne	.unclear
	jecxz	.unclear
	cmp	eax, ecx
	je	.fine
	; (The interrupt may have come in between: `allowed` was set again to the same value two moves later.)
	mov	edx, [allowed]
	cmp	edx, ecx
	jne	.unclear
	lock inc dword [errors]
.fine:	lock inc qword [reads]
.unclear:
	cmp	dword [stop], 0
	je	.read
	cli
	lock dec dword [running]
	ret
.flush:
	push	rdi
	mov	rdi, AREA
	invlpg	[rdi]
	pop	rdi
	lock inc dword [flushed]
	LAPIC_WRITE 0xb0, 0
	ret

; Processors write to pages whose D bits processor 0 clears and collects: a write is never lost.
dirty:
	mov	qword [t_pt], A + ALL
	mov	rax, cr3
	mov	cr3, rax
	mov	dword [errors], 0
	ON_ALL	.both
	CHECK32	[errors], 0
	ret
.both:
	; Each processor has a page of its own, entry 8 + n; it sets, and then clears, D by itself while all others do the same next door.
	mov	ebx, edi
	add	ebx, 8
	mov	r12d, ebx
	shl	r12d, 12
	mov	rax, AREA
	add	r12, rax
	mov	eax, ebx
	shl	eax, 12
	add	eax, FREE_MEMORY + ALL
	mov	[t_pt + rbx * 8], rax
	mov	ebp, 2000
.next:
	lock and qword [t_pt + rbx * 8], ~(PTE_D | PTE_A)
	invlpg	[r12]
	mov	eax, [r12]
	test	qword [t_pt + rbx * 8], PTE_A
	jz	.bad
	test	qword [t_pt + rbx * 8], PTE_D
	jnz	.bad
	mov	[r12], ebp
	test	qword [t_pt + rbx * 8], PTE_D
	jnz	.good
.bad:	lock inc dword [errors]
.good:	dec	ebp
	jnz	.next
	ret

; Code rewritten by processor 0, run by the others after a hand-shake with a serializing instruction.
modify_code:
	mov	byte [A], 0xb8			; MOV EAX, imm32; RET
	mov	byte [A + 5], 0xc3
	mov	dword [errors], 0
	mov	dword [turn], 0
	ON_ALL	.all
	CHECK32	[errors], 0
	ret
.all:
	mov	ebp, 1
.next:
	test	edi, edi
	jnz	.wait
	mov	[A + 1], ebp
.wait:
	call	smp_barrier
	xor	eax, eax
	push	rbp
	push	rdi
	cpuid					; serializes
	pop	rdi
	pop	rbp
	mov	ecx, 20
.call:
	mov	ebx, A
	call	rbx
	cmp	eax, ebp
	je	.good
	lock inc dword [errors]
.good:
	loop	.call
	call	smp_barrier
	inc	ebp
	cmp	ebp, 40
	jbe	.next
	ret

; A single byte of an instruction that runs all the time: old or new, at last the new one (an immediate, in one store).
modify_running:
	mov	byte [A], 0xb8
	mov	dword [A + 1], 0
	mov	byte [A + 5], 0xc3
	mov	dword [errors], 0
	mov	dword [stop], 0
	mov	dword [running], 0
	mov	ecx, 1
.start:
	ON_CPU	rcx, .runner
	inc	ecx
	cmp	ecx, GUEST_CPUS
	jb	.start
	WAIT_UNTIL e, cmp dword [running], GUEST_CPUS - 1
	mov	ebp, 1
.next:
	mov	byte [A + 1], bpl
	mov	ecx, 2000
.pause:	pause
	loop	.pause
	inc	ebp
	cmp	ebp, 200
	jbe	.next
	mov	dword [stop], 1
	call	smp_wait
	CHECK32	[errors], 0
	ret
.runner:
	xor	r12d, r12d			; what was seen last
	lock inc dword [running]
.run:
	mov	ebx, A
	call	rbx
	cmp	eax, r12d
	jae	.forward
	lock inc dword [errors]
.forward:
	mov	r12d, eax
	cmp	dword [stop], 0
	je	.run
	; At the end the last value must come, soon.
	mov	ecx, 1000000
.last:
	call	rbx
	cmp	eax, 200
	je	.seen
	push	rcx
	xor	eax, eax
	push	rbx
	cpuid
	pop	rbx
	pop	rcx
	loop	.last
	lock inc dword [errors]
.seen:	ret

section .data
	align	64
stop:	dd 0
	align	64
allowed: dd 0
	align	64
errors:	dd 0
running: dd 0
flushed: dd 0
turn:	dd 0
	align	8
reads:	dq 0
