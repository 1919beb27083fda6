; IOPL and the I/O permission map in 64-bit and compatibility mode (SDM 1 19.5).
%define GUEST "io_permission"
%define GUEST_BITS 64
%include "guest.inc"

; TSS_LIMIT limit: gives the TSS another limit and loads it again.
%macro TSS_LIMIT 1
	mov	word [gdt + SEL_TSS], %1
	mov	byte [gdt + SEL_TSS + 5], 0x89
	mov	eax, SEL_TSS
	ltr	ax
%endmacro

; IOPL_FAULT and IOPL_WORKS: with these flags at CPL 3.
%define AT_IOPL AT_IOPL_ __?LINE?__,
%macro AT_IOPL_ 4+			; line, flags, fault or not, instruction
	jmp	%%past
%%at:	%4
%%end:	ud2
%%past:
	USER	%%at, 2 | (%2)
%if %3
	CAUGHT_	%1, EXC_GP, 0, %%at
%else
	CAUGHT_	%1, EXC_UD, 0, %%end
%endif
%endmacro
IOPL1	equ 1 << 12
IOPL2	equ 2 << 12

guest_main:
	; No map: IOPL decides.
	AT_IOPL	0, 1, in al, 0x80
	AT_IOPL	IOPL1, 1, in al, 0x80
	AT_IOPL	IOPL2, 1, out 0x80, al
	AT_IOPL	IOPL3, 0, in al, 0x80
	AT_IOPL	IOPL3, 0, out 0x80, al
	AT_IOPL	0, 1, cli
	AT_IOPL	IOPL2, 1, sti
	AT_IOPL	IOPL3, 0, cli
	AT_IOPL	IOPL3, 0, sti
	mov	edx, 0x80
	mov	rsi, buffer
	mov	rdi, buffer
	AT_IOPL	0, 1, outsb
	AT_IOPL	0, 1, insb
	AT_IOPL	IOPL3, 0, outsb
	; A map that allows some ports: one bit each, all of an access.
	mov	rdi, tss_io_map
	mov	ecx, 8193
	mov	al, 0xff
	rep	stosb
	mov	word [tss_io_map + 0x80 / 8], 0xff00 | 0xf0	; 80h to 83h
	TSS_LIMIT 0x68 + 8192
	AT_IOPL	0, 0, out 0x80, al
	AT_IOPL	0, 0, out 0x80, ax
	AT_IOPL	0, 0, out 0x80, eax
	AT_IOPL	0, 0, in al, 0x83
	AT_IOPL	0, 1, in al, 0x84
	AT_IOPL	0, 1, in al, 0x7f
	AT_IOPL	0, 1, in ax, 0x83
	AT_IOPL	0, 1, in eax, 0x81
	AT_IOPL	0, 1, in ax, 0x7f
	; Across two bytes of the map.
	mov	byte [tss_io_map + 0x87 / 8], 0x7f
	mov	byte [tss_io_map + 0x88 / 8], 0xfe
	AT_IOPL	0, 0, in ax, 0x87
	AT_IOPL	0, 1, in eax, 0x87
	; The last port.
	mov	byte [tss_io_map + 8191], 0x7f
	mov	edx, 0xffff
	AT_IOPL	0, 0, in al, dx
	mov	byte [tss_io_map + 8192], 0	; a word at FFFFh looks at the byte behind: here it allows it
	AT_IOPL	0, 0, out dx, ax
	mov	byte [tss_io_map + 8192], 0xff
	AT_IOPL	0, 1, in ax, dx
	; Two bytes are read: at the limit's end that is too many, also for a byte port.
	mov	byte [tss_io_map + 0x80 / 8], 0
	TSS_LIMIT 0x68 + 0x80 / 8 + 1
	AT_IOPL	0, 0, in al, 0x80
	AT_IOPL	0, 0, in al, 0x87
	TSS_LIMIT 0x68 + 0x80 / 8
	AT_IOPL	0, 1, in al, 0x80
	AT_IOPL	IOPL3, 0, in al, 0x80
	; The map's place.
	TSS_LIMIT 0x68 + 8192
	mov	word [tss + 0x66], 0xffff
	AT_IOPL	0, 1, in al, 0x80
	mov	word [tss + 0x66], 0x68 + 16
	AT_IOPL	0, 1, in al, 0x80
	mov	byte [tss_io_map + 16 + 0x80 / 8], 0
	AT_IOPL	0, 0, in al, 0x80
	mov	word [tss + 0x66], 0x68
	; Compatibility mode.
	USER32	code32
	CAUGHT	EXC_GP, 0, code32.at
	; CPL 0 needs neither.
	WORKS	in al, 0x84
	TSS_LIMIT 0x67
	WORKS	in al, 0x84
	ret

bits 32
code32:
	in	al, 0x80
.at:	in	al, 0x90
	ud2
bits 64

section .data
buffer:	dq 0
