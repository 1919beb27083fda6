; Hardware task switches: JMP, CALL, IRET, task gates in GDT and IDT, 16- and 32-bit TSSs, what is saved and loaded,
; busy bits and back links, the T flag, and what is refused (SDM 3A chapter 8).
%define GUEST "tasks"
%define GUEST_BITS 32
%include "guest.inc"

%define S(n) (SEL_FREE + (n) * 8)
%define B S(0)			; a second task
%define G S(1)			; a task gate to it
%define T S(2)			; task of a fault handler
%define D S(3)			; a data segment
%define H S(4)			; a 16-bit task

; Offsets in a 32-bit TSS.
LINK equ 0
TSS_ESP0 equ 4
TSS_SS0 equ 8
TSS_CR3 equ 28
TSS_EIP equ 32
TSS_EFLAGS equ 36
TSS_EAX equ 40
TSS_ECX equ 44
TSS_EDX equ 48
TSS_EBX equ 52
TSS_ESP equ 56
TSS_EBP equ 60
TSS_ESI equ 64
TSS_EDI equ 68
TSS_ES equ 72
TSS_CS equ 76
TSS_SS equ 80
TSS_DS equ 84
TSS_FS equ 88
TSS_GS equ 92
TSS_LDT equ 96
TSS_T equ 100
TSS_IOMAP equ 102

section .bss
	alignb	128
tss_b:	resb	256
tss_t:	resb	256
tss_16:	resb	128
	resb	4096
b_stack:
	resb	4096
t_stack:
section .text

; Fills TSS B: entry point in EAX.
make_b:
	push	edi
	push	ecx
	push	eax
	mov	edi, tss_b
	mov	ecx, 64
	xor	eax, eax
	rep	stosd
	pop	eax
	mov	dword [tss_b + TSS_ESP0], stack0_top
	mov	dword [tss_b + TSS_SS0], SEL_DATA
	mov	[tss_b + TSS_EIP], eax
	mov	dword [tss_b + TSS_EFLAGS], 2
	mov	dword [tss_b + TSS_ESP], b_stack
	mov	dword [tss_b + TSS_CS], SEL_CODE
	mov	dword [tss_b + TSS_SS], SEL_DATA
	mov	dword [tss_b + TSS_DS], SEL_DATA
	mov	dword [tss_b + TSS_ES], SEL_DATA
	mov	word [tss_b + TSS_IOMAP], 0x68
	SET_DESCRIPTOR B, 0, 0x67, 0x0089
	SET_BASE B, tss_b
	pop	ecx
	pop	edi
	ret

%macro TASK_B 1
	mov	eax, %1
	call	make_b
%endmacro

; After a switch away that does not come back: the first TSS is the current one again.
home:
	mov	byte [gdt + SEL_TSS + 5], 0x89
	push	eax
	mov	eax, SEL_TSS
	ltr	ax
	mov	eax, SEL_DATA
	mov	es, eax
	pop	eax
	clts
	ret

guest_main:
	call	jump
	call	call_return
	call	gates
	call	refused
	call	bad_contents
	call	outer
	call	debug_trap
	call	sixteen_bit
	call	fault_handler
	ret

jump:
	TASK_B	.in_b
	mov	dword [tss_b + TSS_EAX], 0x11111111
	mov	dword [tss_b + TSS_ECX], 0x22222222
	mov	dword [tss_b + TSS_EDX], 0x33333333
	mov	dword [tss_b + TSS_EBX], 0x44444444
	mov	dword [tss_b + TSS_EBP], 0x55555555
	mov	dword [tss_b + TSS_ESI], 0x66666666
	mov	dword [tss_b + TSS_EDI], 0x77777777
	mov	dword [tss_b + TSS_EFLAGS], 2 | CF | ZF | DF
	mov	dword [tss_b + TSS_GS], SEL_USER_DATA
	mov	dword [tss_b + LINK], 0xdead
	mov	dword [tss + TSS_CR3], 0xdddd
	mov	dword [tss + LINK], 0xbeef
	mov	eax, SEL_USER_DATA & ~3
	mov	fs, eax
	mov	eax, 1
	mov	ecx, 2
	mov	edx, 3
	mov	ebx, 4
	mov	ebp, 5
	mov	esi, 6
	mov	edi, 7
	stc
	mov	[saved_esp], esp
	jmp	B:0x1234			; the offset is ignored
.back:
	CHECK	eax, 1
	CHECK	edi, 7
	CHECK	esp, [saved_esp]
	HOLDS	c, "flags of the first task"
	CHECK8	[gdt + SEL_TSS + 5], 0x8b
	CHECK8	[gdt + B + 5], 0x89
	CHECK	[tss_b + TSS_EIP], .b_end
	str	eax
	CHECK	eax, SEL_TSS
	clts
	ret
.in_b:
	CHECK	eax, 0x11111111
	CHECK	ecx, 0x22222222
	CHECK	edx, 0x33333333
	CHECK	ebx, 0x44444444
	CHECK	ebp, 0x55555555
	CHECK	esi, 0x66666666
	CHECK	edi, 0x77777777
	CHECK	esp, b_stack
	pushfd
	pop	eax
	cld
	CHECK_BITS eax, CF | ZF | DF | NT | IF | SF, CF | ZF | DF
	mov	eax, gs
	CHECK	eax, SEL_USER_DATA
	mov	eax, fs
	CHECK	eax, 0
	str	eax
	CHECK	eax, B
	mov	eax, cr0
	CHECK_BITS eax, CR0_TS, CR0_TS
	; The old task's state, and nothing beyond it.
	CHECK	[tss + TSS_EAX], 1
	CHECK	[tss + TSS_ECX], 2
	CHECK	[tss + TSS_EDX], 3
	CHECK	[tss + TSS_EBX], 4
	CHECK	[tss + TSS_EBP], 5
	CHECK	[tss + TSS_ESI], 6
	CHECK	[tss + TSS_EDI], 7
	CHECK	[tss + TSS_ESP], [saved_esp]
	CHECK	[tss + TSS_EIP], .back
	CHECK16	[tss + TSS_CS], SEL_CODE
	CHECK16	[tss + TSS_SS], SEL_DATA
	CHECK16	[tss + TSS_FS], SEL_USER_DATA & ~3
	CHECK_BITS [tss + TSS_EFLAGS], CF | NT, CF
	CHECK	[tss + TSS_CR3], 0xdddd		; static fields
	CHECK	[tss + TSS_ESP0], stack0_top
	CHECK	[tss + LINK], 0xbeef
	CHECK	[tss_b + LINK], 0xdead		; JMP does not link
	CHECK8	[gdt + SEL_TSS + 5], 0x89	; no longer busy
	CHECK8	[gdt + B + 5], 0x8b
	jmp	SEL_TSS:0
.b_end:
	ud2

call_return:
	TASK_B	.in_b
	mov	dword [tss_b + LINK], 0xdead0000
	call	B:0
	CHECK8	[gdt + B + 5], 0x89
	CHECK8	[gdt + SEL_TSS + 5], 0x8b
	CHECK_BITS [tss_b + TSS_EFLAGS], NT, 0	; IRET clears it in the image that it saves
	CHECK	[tss_b + TSS_EIP], .second
	pushfd
	pop	eax
	CHECK_BITS eax, NT, 0
	str	eax
	CHECK	eax, SEL_TSS
	; The next call goes on behind IRET.
	call	B:0
	CHECK	[tss_b + TSS_EIP], .third
	clts
	ret
.in_b:
	CHECK16	[tss_b + LINK], SEL_TSS
	pushfd
	pop	eax
	CHECK_BITS eax, NT, NT
	CHECK8	[gdt + SEL_TSS + 5], 0x8b	; stays busy
	CHECK8	[gdt + B + 5], 0x8b
	iretd
.second:
	CHECK	esp, b_stack
	iretd
.third:
	ud2

gates:
	; A task gate in the GDT.
	mov	dword [gdt + G], B << 16
	mov	dword [gdt + G + 4], 0x0000e500
	TASK_B	.in_b
	call	G:0
	CHECK	[tss_b + TSS_EIP], .in_b_end
	; From CPL 3: the gate's DPL counts, the TSS's does not.
	TASK_B	.from_user
	USER	.user_call
	CAUGHT	EXC_BP, 0, .from_user + 1
	CHECK16	[tss_b + LINK], SEL_TSS
	CHECK16	[tss + TSS_CS], SEL_USER_CODE32
	CHECK16	[tss + TSS_SS], SEL_USER_DATA
	call	home
	mov	dword [gdt + G + 4], 0x00008500
	USER_FAULT EXC_GP, G, call G | 3:0
	USER_FAULT EXC_GP, B, call B | 3:0
	; In the IDT: INT n.
	TASK_B	.in_b
	mov	dword [idt + 0x90 * 8], B << 16
	mov	dword [idt + 0x90 * 8 + 4], 0x0000e500
	int	0x90
.behind_int:
	CHECK	[tss_b + TSS_EIP], .in_b_end
	CHECK	[tss_b + TSS_ESP], b_stack
	; For an exception, with its error code on the new stack.
	TASK_B	.handler
	mov	dword [idt + EXC_GP * 8], B << 16
	mov	dword [idt + EXC_GP * 8 + 4], 0x00008500
	mov	dword [seen_error], -1
	mov	eax, 0x1000
.at:	mov	gs, eax
.skip:
	GATE	EXC_GP, STUB(EXC_GP)
	CHECK	[seen_error], 0x1000
	CHECK	[seen_eip], .at
	CHECK	[tss_b + TSS_ESP], b_stack
	; The gate's selector must be a TSS of the GDT that is not busy.
	mov	dword [idt + 0x90 * 8], SEL_DATA << 16
	FAULT	EXC_GP, SEL_DATA, int 0x90
	mov	dword [idt + 0x90 * 8], SEL_TSS << 16
	FAULT	EXC_GP, SEL_TSS, int 0x90
	mov	dword [idt + 0x90 * 8], (B | 4) << 16
	FAULT	EXC_GP, B | 4, int 0x90
	mov	dword [idt + 0x90 * 8], B << 16
	and	byte [gdt + B + 5], 0x7f
	FAULT	EXC_NP, B, int 0x90
	mov	dword [idt + 0x90 * 8 + 4], 0x00006500
	FAULT	EXC_NP, 0x90 * 8 + 2, int 0x90
	clts
	ret
.in_b:	iretd
.in_b_end:
	ud2
.from_user:
	int3
.user_call:
	call	G | 3:0
	ud2
.handler:
	pop	dword [seen_error]
	mov	eax, [tss + TSS_EIP]
	mov	[seen_eip], eax
	mov	dword [tss + TSS_EIP], .skip
	iretd

refused:
	TASK_B	.never
	FAULT	EXC_GP, SEL_TSS, jmp SEL_TSS:0	; busy
	FAULT	EXC_GP, SEL_TSS, call SEL_TSS:0
	FAULT	EXC_GP, B, jmp B | 3:0		; RPL above DPL
	and	byte [gdt + B + 5], 0x7f
	FAULT	EXC_NP, B, jmp B:0
	FAULT	EXC_NP, B, call B:0
	TASK_B	.never
	mov	word [gdt + B], 0x66		; too short
	FAULT	EXC_TS, B, jmp B:0
	FAULT	EXC_TS, B, call B:0
	mov	word [gdt + B], 0x67
	CHECK8	[gdt + B + 5], 0x89
	; IRET with NT: the link must be a busy TSS of the GDT.
	mov	dword [tss + LINK], B
	CATCH	.not_busy
	push	dword NT | 2
	popfd
.iret:	iretd
.not_busy:
	CAUGHT	EXC_TS, B, .iret
	mov	dword [tss + LINK], 0
	CATCH	.null
	push	dword NT | 2
	popfd
.iret2:	iretd
.null:
	CAUGHT	EXC_TS, 0, .iret2
	mov	dword [tss + LINK], SEL_TSS | 4
	CATCH	.ldt
	push	dword NT | 2
	popfd
.iret3:	iretd
.ldt:
	CAUGHT	EXC_TS, SEL_TSS | 4, .iret3
	ret
.never:	FAILED	"a switch that must not be"
	call	home
	iretd

; Bad selectors in the new TSS: the fault is in the new task, before its first instruction.
bad_contents:
%define BAD BAD_ __?LINE?__,
%macro BAD_ 5			; line, offset, selector, vector, error
	TASK_B	.never
	mov	word [tss_b + %2], %3
	CATCH	%%caught
	jmp	B:0
%%caught:
	CAUGHT_	%1, %4, %5, .never
	str	eax
	CHECK_	%1, eax, B
	call	home
%endmacro
	BAD	TSS_DS, 0x1000, EXC_TS, 0x1000
	BAD	TSS_GS, SEL_DATA | 3, EXC_TS, SEL_DATA
	BAD	TSS_ES, SEL_TSS, EXC_TS, SEL_TSS
	SET_DESCRIPTOR D, 0, 0xfffff, 0xc013
	BAD	TSS_FS, D, EXC_NP, D
	ret
.never:	int3
	ud2

; To a task at CPL 3, and back by an interrupt gate.
outer:
	TASK_B	.user
	mov	word [tss_b + TSS_CS], SEL_USER_CODE32
	mov	word [tss_b + TSS_SS], SEL_USER_DATA
	mov	word [tss_b + TSS_DS], SEL_USER_DATA
	mov	word [tss_b + TSS_ES], SEL_USER_DATA
	mov	dword [tss_b + TSS_ESP], user_stack_top
	mov	dword [tss_b + TSS_EFLAGS], IF | IOPL3 | 2
	mov	dword [tss_b + TSS_ESP0], stack0_top - 0x100
	CATCH	.caught
	jmp	B:0
.caught:
	CAUGHT	EXC_UD, 0, .user
	CHECK	[caught_cs], SEL_USER_CODE32
	CHECK	[caught_xsp], user_stack_top
	CHECK	[caught_frame], stack0_top - 0x100 - 20 ; ESP0 of the new TSS
	CHECK_BITS [caught_flags], IF | IOPL3, IF | IOPL3
	call	home
	; To virtual-8086 mode.
	TASK_B	0
	mov	dword [tss_b + TSS_EFLAGS], VM | 2
	mov	word [tss_b + TSS_CS], 0x800
	mov	word [tss_b + TSS_SS], 0x700
	mov	dword [tss_b + TSS_ESP], 0x100
	mov	word [tss_b + TSS_DS], 0x1234
	mov	word [tss_b + TSS_GS], 0x5678
	mov	word [0x8000], 0x0b0f		; UD2
	CATCH	.vm86
	jmp	B:0
.vm86:
	CAUGHT	EXC_UD, 0, 0
	CHECK	[caught_cs], 0x800
	CHECK	[caught_vm + 4], 0x1234
	CHECK	[caught_vm + 12], 0x5678
	CHECK_BITS [caught_flags], VM, VM
	call	home
	ret
.user:	ud2

; T in the TSS: #DB before the first instruction, BT in DR6.
debug_trap:
	mov	eax, 0xffff0ff0
	mov	dr6, eax
	TASK_B	.b
	mov	word [tss_b + TSS_T], 1
	CATCH	.caught
	jmp	B:0
.caught:
	CAUGHT	EXC_DB, 0, .b
	mov	eax, dr6
	CHECK_BITS eax, 0xe00f, 0x8000
	call	home
	mov	eax, 0xffff0ff0
	mov	dr6, eax
	; A switch clears the local breakpoint enables of DR7.
	mov	eax, .b
	mov	dr0, eax
	mov	eax, 1 | 1 << 3			; L0 and G1
	mov	dr7, eax
	TASK_B	.b
	CATCH	.local
	jmp	B:0
.local:
	CAUGHT	EXC_UD, 0, .b
	mov	eax, dr7
	CHECK_BITS eax, 0xff, 1 << 3
	xor	eax, eax
	mov	dr7, eax
	call	home
	ret
.b:	ud2

sixteen_bit:
	mov	edi, tss_16
	mov	ecx, 32
	xor	eax, eax
	rep	stosd
	mov	word [tss_16 + 14], 0		; IP, in a code segment of its own
	mov	word [tss_16 + 16], 2 | CF
	mov	word [tss_16 + 18], 0x1111	; AX
	mov	word [tss_16 + 24], 0x4444	; BX
	mov	word [tss_16 + 26], 0x1000	; SP
	mov	word [tss_16 + 34], SEL_DATA	; ES
	mov	word [tss_16 + 36], S(5)	; CS
	mov	word [tss_16 + 38], S(6)	; SS
	mov	word [tss_16 + 40], SEL_DATA	; DS
	SET_DESCRIPTOR H, 0, 0x2b, 0x0081
	SET_BASE H, tss_16
	SET_DESCRIPTOR S(5), 0, 0xffff, 0x409b
	SET_BASE S(5), .code
	SET_DESCRIPTOR S(6), FREE_MEMORY, 0xffff, 0x0093
	mov	ebx, 0xaaaabbbb
	call	H:0
	CHECK	ebx, 0xaaaabbbb
	CHECK_BITS [seen_eax], 0xffff, 0x1111
	CHECK_BITS [seen_ebx], 0xffff, 0x4444
	CHECK16	[tss_16 + 18], 0x9999
	CHECK16	[tss_16], SEL_TSS
	CHECK8	[gdt + H + 5], 0x81
	SET_DESCRIPTOR H, 0, 0x2a, 0x0081
	SET_BASE H, tss_16
	FAULT	EXC_TS, H, call H:0
	clts
	ret
.code:
	mov	[seen_eax], eax
	mov	[seen_ebx], ebx
	mov	eax, 0x9999
	iretd

; A task as the double fault's handler, which survives any stack.
fault_handler:
	mov	edi, tss_t
	mov	ecx, 64
	xor	eax, eax
	rep	stosd
	mov	dword [tss_t + TSS_EIP], .handler
	mov	dword [tss_t + TSS_EFLAGS], 2
	mov	dword [tss_t + TSS_ESP], t_stack
	mov	dword [tss_t + TSS_CS], SEL_CODE
	mov	dword [tss_t + TSS_SS], SEL_DATA
	mov	dword [tss_t + TSS_DS], SEL_DATA
	mov	dword [tss_t + TSS_ES], SEL_DATA
	SET_DESCRIPTOR T, 0, 0x67, 0x0089
	SET_BASE T, tss_t
	mov	dword [idt + EXC_DF * 8], T << 16
	mov	dword [idt + EXC_DF * 8 + 4], 0x00008500
	mov	[saved_esp], esp
	; #GP without a gate, and without a place to push.
	mov	byte [idt + EXC_GP * 8 + 5], 0
	mov	dword [seen_error], -1
	mov	eax, 0x1000
.at:	mov	gs, eax
.back:
	CHECK	[seen_error], 0
	CHECK	[seen_eip], .at
	CHECK	esp, [saved_esp]
	GATE	EXC_GP, STUB(EXC_GP)
	GATE	EXC_DF, STUB(EXC_DF)
	; #TS for a stack that the TSS does not name right is taken by a task, at any level.
	mov	dword [tss_t + TSS_EIP], .handler
	mov	dword [tss_t + TSS_ESP], t_stack
	mov	dword [idt + EXC_TS * 8], T << 16
	mov	dword [idt + EXC_TS * 8 + 4], 0x00008500
	mov	dword [tss + TSS_SS0], 0x1000
	mov	dword [.next], .user_back
	push	dword SEL_USER_DATA
	push	dword user_stack_top
	push	dword 2
	push	dword SEL_USER_CODE32
	push	dword .user
	iretd
.user:	ud2
.user_back:
	mov	esp, [saved_esp]
	mov	dword [tss + TSS_SS0], SEL_DATA
	CHECK	[seen_error], 0x1001		; EXT: the UD2 was no INT n
	CHECK	[seen_eip], .user
	GATE	EXC_TS, STUB(EXC_TS)
	clts
	ret
.handler:
	pop	dword [seen_error]
	mov	eax, [tss + TSS_EIP]
	mov	[seen_eip], eax
	mov	eax, [.next]
	mov	[tss + TSS_EIP], eax
	; Back at CPL 0, whatever it was.
	mov	dword [tss + TSS_CS], SEL_CODE
	mov	dword [tss + TSS_SS], SEL_DATA
	mov	dword [tss + TSS_DS], SEL_DATA
	mov	dword [tss + TSS_ES], SEL_DATA
	iretd
	jmp	.handler
section .data
	align	4
.next:	dd .back

saved_esp: dd 0
seen_error: dd 0
seen_eip: dd 0
seen_eax: dd 0
seen_ebx: dd 0
