// Chooses among the compiled instruction sets; M2CLIP_X86 says that the AVX ones are there.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#ifdef M2CLIP_X86
extern const InstructionSet instruction_set_avx512, instruction_set_avx2;
#endif
extern const InstructionSet instruction_set_portable;

namespace {

const InstructionSet* const compiled[] = {
#ifdef M2CLIP_X86
    &instruction_set_avx512,
    &instruction_set_avx2,
#endif
    &instruction_set_portable,
};

const InstructionSet* best() {
    for (const InstructionSet* set : compiled) {
        if (set->supported()) return set;
    }
    abort();  // the portable one is always supported
}

const InstructionSet* chosen = best();

}  // namespace

const InstructionSet& instruction_set() { return *chosen; }

bool select_instruction_set(const char* name) {
    for (const InstructionSet* set : compiled) {
        if (strcmp(set->name, name) == 0 && set->supported()) {
            chosen = set;
            return true;
        }
    }
    return false;
}
