/* Runs a program on this x86-64 processor as if it were an older one: engines choose their kernels by what CPUID says.

   cc -O1 -shared -fPIC -o as_older_processor.so benchmarks/as_older_processor.c
   PNEUMO_BENCH_AS=avx2 LD_PRELOAD=$PWD/as_older_processor.so pneumo-bench latency

   avx_vnni hides AVX-512 and AMX (as on an Intel N100), avx2 hides AVX-VNNI as well. Needs Linux and a processor with
   CPUID faulting (flag cpuid_fault): the instruction CPUID then raises SIGSEGV, and the handler below answers in its
   place. Clock, caches and memory stay those of this processor. */

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (UINT32_C(1) << (n))

static int hide_avx_vnni;

static long allow_cpuid(int allowed) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, (long)allowed); }

/* Bits as in Intel's manual, volume 2A, CPUID. eax, ebx, ecx, edx stand in r[0] to r[3]. */
static void hide(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
    if (leaf == 7 && subleaf == 0) {
        /* AVX512 F, DQ, IFMA, PF, ER, CD, BW, VL */
        r[1] &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        /* AVX512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
        r[2] &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
        /* AVX512 4VNNIW, 4FMAPS, VP2INTERSECT, AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8 */
        r[3] &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    } else if (leaf == 7 && subleaf == 1) {
        /* AVX512-BF16, AMX-FP16; AVX10 */
        r[0] &= ~(BIT(5) | BIT(21));
        r[3] &= ~BIT(19);
        if (hide_avx_vnni) {
            /* AVX-VNNI, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16 */
            r[0] &= ~(BIT(4) | BIT(23));
            r[3] &= ~(BIT(4) | BIT(5) | BIT(10));
        }
    } else if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) {
        /* Tiles of AMX, and AVX10 */
        memset(r, 0, 4 * sizeof *r);
    }
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)info;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0xa2) {
        /* A fault of the program itself: it happens again, without this handler. */
        struct sigaction usual = {.sa_handler = SIG_DFL};
        sigaction(signal, &usual, NULL);
        return;
    }
    uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX], r[4];
    allow_cpuid(1);
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
    allow_cpuid(0);
    hide(leaf, subleaf, r);
    registers[REG_RAX] = r[0];
    registers[REG_RBX] = r[1];
    registers[REG_RCX] = r[2];
    registers[REG_RDX] = r[3];
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
    const char *as = getenv("PNEUMO_BENCH_AS");
    if (!as || (strcmp(as, "avx2") && strcmp(as, "avx_vnni"))) {
        fputs("as_older_processor: PNEUMO_BENCH_AS must be avx2 or avx_vnni\n", stderr);
        _exit(2);
    }
    hide_avx_vnni = !strcmp(as, "avx2");
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    if (allow_cpuid(0)) {
        fputs("as_older_processor: this processor or its hypervisor has no CPUID faulting\n", stderr);
        _exit(2);
    }
}
