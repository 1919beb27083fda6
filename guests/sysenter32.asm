; SYSENTER and SYSEXIT in 32-bit protected mode, which all vendors have.
%define GUEST "sysenter32"
%define GUEST_BITS 32
%include "guest.inc"

guest_main:
	; A null CS in the MSR.
	WRMSR_	MSR_SYSENTER_CS, 0
	WRMSR_	MSR_SYSENTER_EIP, .entry
	WRMSR_	MSR_SYSENTER_ESP, stack0_top - 0x40
	FAULT	EXC_GP, 0, sysenter
	USER_FAULT EXC_GP, 0, sysenter
	WRMSR_	MSR_SYSENTER_CS, SEL_CODE
	RDMSR_	MSR_SYSENTER_ESP
	CHECK	eax, stack0_top - 0x40
	mov	ebx, 0xb0b
	USER	.user, 2 | IF | CF
	CAUGHT	EXC_BP, 0, .entry_end
	CHECK	[caught_cs], SEL_CODE
	CHECK	[caught_ss], SEL_DATA
	CHECK	[caught_xsp], stack0_top - 0x40
	CHECK_BITS [caught_flags], IF | CF, CF
	CHECK	ebx, 0xb0b
	; The descriptors are not looked at: flat segments, always.
	SET_DESCRIPTOR 0x10, 0, 0, 0
	SET_DESCRIPTOR 0x10, 0, 0xfffff, 0xc093
	; SYSEXIT: CS + 16, SS + 24, EIP from EDX, ESP from ECX.
	mov	ecx, user_stack_top - 0x20
	mov	edx, .target
	CATCH	.back
	sysexit
.back:
	CAUGHT	EXC_UD, 0, .target
	CHECK	[caught_cs], SEL_CODE + 16 | 3
	CHECK	[caught_ss], SEL_CODE + 24 | 3
	CHECK	[caught_xsp], user_stack_top - 0x20
	USER_FAULT EXC_GP, 0, sysexit
	; A round trip.
	WRMSR_	MSR_SYSENTER_EIP, .service
	mov	eax, 40
	USER	.caller
	CAUGHT	EXC_UD, 0, .caller_end
	CHECK	eax, 41
	CHECK	[caught_xsp], user_stack_top
	; It clears VM and IF, and stays out of real mode.
	ret
.user:	sysenter
.target:
	ud2
.entry:	int3
.entry_end:
.caller:
	mov	ecx, esp
	mov	edx, .caller_end
	sysenter
.caller_end:
	ud2
.service:
	inc	eax
	sysexit
