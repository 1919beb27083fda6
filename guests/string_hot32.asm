; String instructions in hot loops of 32-bit code (lib/string_hot.inc).
%define GUEST "string_hot32"
%define GUEST_BITS 32
%include "guest.inc"
%include "string_hot.inc"

guest_main:
	call	string_random
	call	string_patch
	call	string_mmio
	ret
