; The frame itself: checks, catcher, user mode and back.
%define GUEST "smoke"
%define GUEST_BITS 64
%include "guest.inc"

guest_main:
	CHECK32	[boot_magic], 0x2badb002
	CHECK	rsp, stack_top - 8
	mov	rax, 0x123456789abcdef0
	CHECK	rax, 0x123456789abcdef0
	FAULT	EXC_UD, 0, ud2
	TRAP	EXC_BP, int3
	WORKS	nop
	xor	ecx, ecx
	FAULT	EXC_DE, 0, div ecx
	USER	.user
	CAUGHT	EXC_UD, 0, .user
	CHECK	[caught_cs], SEL_USER_CODE64
	CHECK	[caught_ss], SEL_USER_DATA
	CHECK	[caught_xsp], user_stack_top
	CHECK	[caught_frame], stack0_top - 40
	ret
.user:
	ud2
