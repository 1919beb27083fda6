; Many loops, each a block that leads to itself, with interrupts off: where there is no room for the translation of one, room
; must be made while it runs, though nothing interrupts it (run-guests --put-off counts how often it was tried).
%define GUEST "many_loops"
%define GUEST_BITS 64
%include "guest.inc"

LOOPS	equ 400
ROUNDS	equ 30000

section .bss
	alignb	64
words:	resq	64
section .text

%macro ADD_UP 1
	mov	ecx, ROUNDS
	mov	ebx, words
	mov	esi, words + 128
	mov	edi, words + 256
	align	16
%%again:
	mov	rax, [rbx]
	add	[rsi + (%1 % 8) * 8], rcx
	mov	[rdi], rax
	dec	ecx
	jnz	%%again
%endmacro

guest_main:
	cli
%assign n 0
%rep LOOPS
	ADD_UP	n
	%assign n n + 1
%endrep
	; What every eighth of them has added: 1 + ... + ROUNDS, each.
	mov	rdx, (LOOPS / 8) * ((ROUNDS * (ROUNDS + 1)) / 2)
	mov	rax, [words + 128]
	CHECK	rax, rdx
	mov	rax, [words + 128 + 56]
	CHECK	rax, rdx
	ret
