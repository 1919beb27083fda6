; Processors and memory: locked instructions under contention, total store order (litmus tests), split locks, a spin
; lock, CMPXCHG16B (SDM 3A 8.1, 8.2).
%define GUEST "smp_memory"
%define GUEST_BITS 64
%define GUEST_CPUS 4
%include "guest.inc"
%include "smp.inc"

ROUNDS	equ 20000
LITMUS	equ 10
CELLS	equ 1024
READS	equ 40000

guest_main:
	call	smp_start
	ON_ALL	counters
	; Four processors, ROUNDS times each.
	CHECK32	[c_add], GUEST_CPUS * ROUNDS
	CHECK32	[c_inc], GUEST_CPUS * ROUNDS
	CHECK32	[c_xadd], GUEST_CPUS * ROUNDS
	CHECK32	[c_cmpxchg], GUEST_CPUS * ROUNDS
	CHECK	[c_wide], GUEST_CPUS * ROUNDS
	CHECK	[c_wide + 8], GUEST_CPUS * ROUNDS
	CHECK16	[c_word], (GUEST_CPUS * ROUNDS) & 0xffff
	CHECK8	[c_byte], (GUEST_CPUS * ROUNDS) & 0xff
	CHECK32	[c_sub], -(GUEST_CPUS * ROUNDS)
	CHECK32	[c_locked], GUEST_CPUS * ROUNDS	; by a spin lock
	CHECK	[split + 61], GUEST_CPUS * ROUNDS	; across two cache lines
	CHECK	[pages + 4092], GUEST_CPUS * ROUNDS / 8	; across two pages
	CHECK32	[c_neighbour], ROUNDS			; plain bytes next to one another do not disturb
	CHECK32	[c_neighbour + 4], ROUNDS
	CHECK32	[c_neighbour + 8], ROUNDS
	CHECK32	[c_neighbour + 12], ROUNDS
	; Bits: each processor sets its own quarter of 4096, all are set in the end.
	ON_ALL	bits_
	mov	edi, bitmap
	mov	ecx, 512
	mov	al, 0xff
	repe	scasb
	HOLDS	e, "lock bts"
	; XOR by an odd number of processors twice is nothing.
	ON_ALL	xors
	CHECK32	[c_xor], 0
	; Tickets: every number once.
	ON_ALL	tickets
	CHECK32	[ticket_errors], 0
	CHECK32	[c_ticket], GUEST_CPUS * 2000
	; Litmus tests, each with its roles on processors 0 and 1 (and 2, 3 for the second pair).
	ON_ALL	message_passing
	CHECK32	[errors], 0
	ON_ALL	load_load
	CHECK32	[errors], 0
	ON_ALL	store_buffering
	CHECK32	[errors], 0
	ON_ALL	store_buffering_locked
	CHECK32	[errors], 0
	ON_ALL	independent_reads
	CHECK32	[errors], 0
	ON_ALL	forwarding
	CHECK32	[errors], 0
	; Aligned accesses of 8 bytes are never torn.
	ON_ALL	tearing
	CHECK32	[errors], 0
	ret

counters:
	mov	ebp, ROUNDS
	imul	r15d, edi, 4
.next:
	lock add dword [c_add], 1
	lock inc dword [c_inc]
	mov	eax, 1
	lock xadd [c_xadd], eax
	lock inc word [c_word]
	lock inc byte [c_byte]
	lock dec dword [c_sub]
	mov	eax, [c_cmpxchg]
.retry:
	lea	ecx, [rax + 1]
	lock cmpxchg [c_cmpxchg], ecx
	jne	.retry
	mov	rax, [c_wide]
	mov	rdx, [c_wide + 8]
.retry16:
	lea	rbx, [rax + 1]
	lea	rcx, [rdx + 1]
	lock cmpxchg16b [c_wide]
	jne	.retry16
	; XCHG locks by itself.
.spin:
	mov	eax, 1
	xchg	[spin_lock], eax
	test	eax, eax
	jz	.mine
	pause
	jmp	.spin
.mine:
	inc	dword [c_locked]
	mov	dword [spin_lock], 0
	lock inc qword [split + 61]
	test	ebp, 7
	jnz	.no_page
	lock add qword [pages + 4092], 1
.no_page:
	inc	dword [c_neighbour + r15]
	dec	ebp
	jnz	.next
	ret

bits_:
	mov	ebx, edi
.next:
	lock bts [bitmap], rbx
	add	ebx, GUEST_CPUS
	cmp	ebx, 4096
	jb	.next
	ret

xors:
	mov	ebp, 5000
	mov	ebx, edi
	shl	ebx, 5
	or	ebx, 0x10001
.next:
	lock xor [c_xor], ebx
	lock xor [c_xor], ebx
	dec	ebp
	jnz	.next
	ret

tickets:
	mov	ebp, 2000
.next:
	mov	eax, 1
	lock xadd [c_ticket], eax
	lock bts [taken], rax
	jnc	.fresh
	lock inc dword [ticket_errors]
.fresh:
	dec	ebp
	jnz	.next
	ret

; Every litmus test runs over arrays of cells, without a rendezvous for each (with more processors than the host has,
; that would take for ever): all meet, each goes through all cells (R12 is the cell's offset), all meet, one checks
; and clears.
%macro LITMUS_BEGIN 0
	mov	dword [errors], 0
	mov	ebp, LITMUS
.litmus_again:
	call	smp_barrier
	xor	r12d, r12d
.litmus_next:
%endmacro
%macro LITMUS_CHECK 0
	add	r12d, 8
	cmp	r12d, CELLS * 8
	jb	.litmus_next
	call	smp_barrier
	test	edi, edi
	jnz	.litmus_others
	xor	r12d, r12d
.litmus_check:
%endmacro
%macro LITMUS_END 0
	mov	qword [x + r12], 0
	mov	qword [y + r12], 0
	add	r12d, 8
	cmp	r12d, CELLS * 8
	jb	.litmus_check
.litmus_others:
	call	smp_barrier
	dec	ebp
	jnz	.litmus_again
	ret
%endmacro

; x = 1; y = 1 || r1 = y; r2 = x: never r1 = 1 and r2 = 0.
message_passing:
	LITMUS_BEGIN
	cmp	edi, 1
	ja	.meet
	je	.read
	mov	qword [x + r12], 1
	mov	qword [y + r12], 1
	jmp	.meet
.read:	mov	rax, [y + r12]
	mov	rbx, [x + r12]
	cmp	rax, 1
	jne	.meet
	cmp	rbx, 0
	jne	.meet
	lock inc dword [errors]
.meet:
	LITMUS_CHECK
	LITMUS_END

; A writer counts up; readers never see it go back.
load_load:
	mov	dword [errors], 0
	mov	qword [x], 0
	call	smp_barrier
	mov	ebp, READS
	test	edi, edi
	jnz	.read
.write:
	inc	qword [x]
	dec	ebp
	jnz	.write
	ret
.read:
	mov	rax, [x]
	mov	rbx, [x]
	cmp	rbx, rax
	jae	.fine
	lock inc dword [errors]
.fine:
	dec	ebp
	jnz	.read
	ret

; x = 1; mfence; r1 = y || y = 1; mfence; r2 = x: never both 0.
store_buffering:
	LITMUS_BEGIN
	cmp	edi, 1
	ja	.meet
	je	.second
	mov	qword [x + r12], 1
	mfence
	mov	rax, [y + r12]
	mov	[r1 + r12], rax
	jmp	.meet
.second:
	mov	qword [y + r12], 1
	mfence
	mov	rax, [x + r12]
	mov	[r2 + r12], rax
.meet:
	LITMUS_CHECK
	mov	rax, [r1 + r12]
	or	rax, [r2 + r12]
	jnz	.fine
	inc	dword [errors]
.fine:
	LITMUS_END

; The same with a locked instruction (XCHG) instead of the fence.
store_buffering_locked:
	LITMUS_BEGIN
	cmp	edi, 1
	ja	.meet
	je	.second
	mov	eax, 1
	xchg	[x + r12], rax
	mov	rax, [y + r12]
	mov	[r1 + r12], rax
	jmp	.meet
.second:
	mov	eax, 1
	xchg	[y + r12], rax
	mov	rax, [x + r12]
	mov	[r2 + r12], rax
.meet:
	LITMUS_CHECK
	mov	rax, [r1 + r12]
	or	rax, [r2 + r12]
	jnz	.fine
	inc	dword [errors]
.fine:
	LITMUS_END

; Two writers, two readers: both readers agree on the order.
independent_reads:
	LITMUS_BEGIN
	cmp	edi, 1
	jb	.write_x
	je	.write_y
	cmp	edi, 2
	je	.read_xy
	mov	rax, [y + r12]
	mov	rbx, [x + r12]
	mov	[r3 + r12], rax
	mov	[r4 + r12], rbx
	jmp	.meet
.read_xy:
	mov	rax, [x + r12]
	mov	rbx, [y + r12]
	mov	[r1 + r12], rax
	mov	[r2 + r12], rbx
	jmp	.meet
.write_x:
	mov	qword [x + r12], 1
	jmp	.meet
.write_y:
	mov	qword [y + r12], 1
.meet:
	LITMUS_CHECK
	; r1 = 1, r2 = 0, r3 = 1, r4 = 0 is the impossible one.
	mov	rax, [r1 + r12]
	and	rax, [r3 + r12]
	mov	rbx, [r2 + r12]
	or	rbx, [r4 + r12]
	xor	rbx, 1
	test	rax, rbx
	jz	.fine
	inc	dword [errors]
.fine:
	LITMUS_END

; A processor sees its own store at once.
forwarding:
	LITMUS_BEGIN
	cmp	edi, 1
	ja	.meet
	lea	rbx, [x + r12]
	je	.mine
	lea	rbx, [y + r12]
.mine:	mov	qword [rbx], 1
	cmp	qword [rbx], 1
	je	.meet
	lock inc dword [errors]
.meet:
	LITMUS_CHECK
	LITMUS_END

tearing:
	mov	dword [errors], 0
	mov	qword [x], 0
	call	smp_barrier
	mov	ebp, READS
	test	edi, 1
	jnz	.read
	xor	eax, eax
	test	edi, 2
	jz	.write
	dec	rax
.write:	mov	[x], rax
	not	rax
	dec	ebp
	jnz	.write
	ret
.read:	mov	rax, [x]
	mov	rbx, rax
	not	rbx
	test	rax, rax
	jz	.whole
	test	rbx, rbx
	jz	.whole
	lock inc dword [errors]
.whole:	dec	ebp
	jnz	.read
	ret

section .bss
	alignb	4096
pages:	resb	8192
x:	resq	CELLS
y:	resq	CELLS
r1:	resq	CELLS
r2:	resq	CELLS
r3:	resq	CELLS
r4:	resq	CELLS
bitmap:	resb	512
taken:	resb	1024

section .data
	align	64
c_add:	dd 0
	align	64
c_inc:	dd 0
	align	64
c_xadd:	dd 0
	align	64
c_cmpxchg: dd 0
	align	64
c_wide:	dq 0, 0
c_word:	dw 0
c_byte:	db 0
	align	64
c_sub:	dd 0
c_locked: dd 0
spin_lock: dd 0
c_xor:	dd 0
c_ticket: dd 0
ticket_errors: dd 0
	align	64
split:	times 128 db 0
c_neighbour: dd 0, 0, 0, 0
	align	64
errors:	dd 0
