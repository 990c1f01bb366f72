// Tile instructions (AMX) in software, for tests on a processor without them: `cargo xtask tiles` preloads this.
//
// A handler of SIGILL decodes the instruction that the processor refused, carries it out on tiles of the thread's own and
// goes on behind it. It goes on with what follows as long as that is another tile instruction or one of those that
// make up the loops around them, for a signal takes twenty times as long as a product. What the processor would refuse,
// a wrong configuration, shapes that do not fit, the same tile twice, ends the process with a line that says so. Speeds mean
// nothing here; the order of sums is that of Intel's manual, "TDPBF16PS" and "TDPBSSD", and not compared with a processor's.
#define _GNU_SOURCE
#include <fcntl.h>
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { LDTILECFG, STTILECFG, TILERELEASE, TILEZERO, TILELOAD, TILELOADT1, TILESTORE, TDPBF16, TDPB, KINDS };
static const char *const NAMES[KINDS] = {"ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd",
    "tileloaddt1", "tilestored", "tdpbf16ps", "tdpb[su][su]d"};
static uint64_t counts[KINDS], signals, others;

typedef struct { uint8_t palette, start_row, reserved[14]; uint16_t colsb[16]; uint8_t rows[16]; } Config;
typedef struct { Config c; uint8_t t[8][16][64]; } State;
static __thread State S __attribute__((tls_model("initial-exec"), aligned(64)));

static void put(const char *s) { ssize_t r = write(2, s, strlen(s)); (void)r; }

static void die(const uint8_t *ip, const char *why) {
    char b[256];
    int n = snprintf(b, sizeof b, "tiles: process %d: %s at %p, bytes", getpid(), why, (const void *)ip);
    for (int i = 0; i < 15; i++) n += snprintf(b + n, sizeof b - n, " %02x", ip[i]);
    b[n++] = '\n'; b[n] = 0;
    put(b);
    signal(SIGILL, SIG_DFL);  // the instruction runs again and ends the process
}

// Number of general register r as the encoding has it.
static inline greg_t *reg(ucontext_t *u, int r) {
    static const uint8_t at[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
        REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return &u->uc_mcontext.gregs[at[r]];
}

// A memory operand: `m` is at ModRM. Returns the bytes of ModRM, SIB and displacement. With `tile` the index is
// the stride and not part of the address.
static int operand(ucontext_t *u, const uint8_t *m, int x, int b, int tile, uint64_t *address, int64_t *stride, int tail) {
    int mod = m[0] >> 6, rm = m[0] & 7, n = 1, base = rm;
    int64_t a = 0, s = 0;
    if (rm == 4) {
        int sib = m[n++], index = (sib >> 3 & 7) | x << 3;
        base = sib & 7;
        if (index != 4) s = *reg(u, index) * (1 << (sib >> 6));
    }
    int32_t d = 0;
    if (base == 5 && mod == 0) {
        memcpy(&d, m + n, 4); n += 4;
        if (rm == 5) a = (int64_t)(m + n + tail);  // relative to RIP
    } else {
        a = *reg(u, base | b << 3);
        if (mod == 1) d = (int8_t)m[n++];
        if (mod == 2) { memcpy(&d, m + n, 4); n += 4; }
    }
    *address = a + d + (tile ? 0 : s);
    *stride = s;
    return n;
}

static inline __mmask16 dwords(int bytes) { return (__mmask16)((1u << (bytes >> 2)) - 1); }

__attribute__((target("avx512f,avx512bw")))
static void load(int t, uint64_t at, int64_t stride) {
    int rows = S.c.rows[t], bytes = S.c.colsb[t];
    __mmask64 k = bytes == 64 ? ~0ull : (1ull << bytes) - 1;
    for (int r = S.c.start_row; r < rows; r++)
        _mm512_store_si512(S.t[t][r], _mm512_maskz_loadu_epi8(k, (const void *)(at + r * stride)));
    for (int r = rows; r < 16; r++) _mm512_store_si512(S.t[t][r], _mm512_setzero_si512());
}

__attribute__((target("avx512f,avx512bw")))
static void store(int t, uint64_t at, int64_t stride) {
    int rows = S.c.rows[t], bytes = S.c.colsb[t];
    __mmask64 k = bytes == 64 ? ~0ull : (1ull << bytes) - 1;
    for (int r = S.c.start_row; r < rows; r++)
        _mm512_mask_storeu_epi8((void *)(at + r * stride), k, _mm512_load_si512(S.t[t][r]));
}

// As the manual says: sums of the even and of the odd products by fused multiply-add from zero, these two added, and
// that to the tile; DAZ, FTZ, nearest even.
__attribute__((target("avx512f,avx512bw")))
static void tdpbf16(int c, int a, int b) {
    int K = S.c.colsb[a] >> 2, rows = S.c.rows[c];
    __mmask16 cols = dwords(S.c.colsb[c]);
    __m512 even[16], odd[16];
    const __m512i high = _mm512_set1_epi32((int)0xffff0000);
    for (int k = 0; k < K; k++) {
        __m512i x = _mm512_load_si512(S.t[b][k]);
        even[k] = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
        odd[k] = _mm512_castsi512_ps(_mm512_and_si512(x, high));
    }
    float ae[16][16] __attribute__((aligned(64))), ao[16][16] __attribute__((aligned(64)));
    for (int m = 0; m < 16; m++) {
        __m512i x = _mm512_load_si512(S.t[a][m]);
        _mm512_store_si512(ae[m], _mm512_slli_epi32(x, 16));
        _mm512_store_si512(ao[m], _mm512_and_si512(x, high));
    }
    for (int m = 0; m < rows; m += 4) {  // rows beyond are zeros and stay so, by their mask
        __m512 e[4], o[4];
        for (int i = 0; i < 4; i++) e[i] = o[i] = _mm512_setzero_ps();
        for (int k = 0; k < K; k++)
            for (int i = 0; i < 4; i++) {
                e[i] = _mm512_fmadd_ps(_mm512_set1_ps(ae[m + i][k]), even[k], e[i]);
                o[i] = _mm512_fmadd_ps(_mm512_set1_ps(ao[m + i][k]), odd[k], o[i]);
            }
        for (int i = 0; i < 4; i++) {
            __mmask16 keep = m + i < rows ? cols : 0;
            __m512 sum = _mm512_add_ps(_mm512_load_ps((float *)S.t[c][m + i]), _mm512_add_ps(e[i], o[i]));
            _mm512_store_ps((float *)S.t[c][m + i], _mm512_maskz_mov_ps(keep, sum));
        }
    }
}

// op: 3 ssd (F2), 2 sud (F3), 1 usd (66), 0 uud. Bytes in words, even and odd ones, so that nothing saturates; sums wrap.
__attribute__((target("avx512f,avx512bw")))
static inline __m512i words(__m512i x, int odd, int is_signed) {
    if (!odd) x = _mm512_slli_epi16(x, 8);
    return is_signed ? _mm512_srai_epi16(x, 8) : _mm512_srli_epi16(x, 8);
}
__attribute__((target("avx512f,avx512bw")))
static void tdpb(int c, int a, int b, int a_signed, int b_signed) {
    int K = S.c.colsb[a] >> 2, rows = S.c.rows[c];
    __mmask16 cols = dwords(S.c.colsb[c]);
    __m512i even[16], odd[16];
    for (int k = 0; k < K; k++) {
        __m512i x = _mm512_load_si512(S.t[b][k]);
        even[k] = words(x, 0, b_signed);
        odd[k] = words(x, 1, b_signed);
    }
    int32_t ae[16] __attribute__((aligned(64))), ao[16] __attribute__((aligned(64)));
    for (int m = 0; m < rows; m++) {
        __m512i x = _mm512_load_si512(S.t[a][m]);
        _mm512_store_si512(ae, words(x, 0, a_signed));
        _mm512_store_si512(ao, words(x, 1, a_signed));
        __m512i e = _mm512_load_si512(S.t[c][m]), o = _mm512_setzero_si512();
        for (int k = 0; k < K; k++) {
            e = _mm512_add_epi32(e, _mm512_madd_epi16(_mm512_set1_epi32(ae[k]), even[k]));
            o = _mm512_add_epi32(o, _mm512_madd_epi16(_mm512_set1_epi32(ao[k]), odd[k]));
        }
        _mm512_store_si512(S.t[c][m], _mm512_maskz_add_epi32(cols, e, o));
    }
}

#define FLAGS 0x8d5ul  // OF SF ZF AF PF CF
__attribute__((noinline)) static uint64_t add(uint64_t a, uint64_t b, greg_t *flags) {
    uint64_t f;
    __asm__("addq %2, %0\n\tpushfq\n\tpopq %1" : "+r"(a), "=r"(f) : "r"(b) : "cc");
    *flags = (*flags & ~FLAGS) | (f & FLAGS);
    return a;
}
__attribute__((noinline)) static uint64_t dec(uint64_t a, greg_t *flags) {
    uint64_t f;
    __asm__("decq %0\n\tpushfq\n\tpopq %1" : "+r"(a), "=r"(f) : : "cc");
    *flags = (*flags & ~(FLAGS & ~1ul)) | (f & FLAGS & ~1ul);
    return a;
}

// One of the few instructions of loops around tiles, or 0.
static int simple(ucontext_t *u, const uint8_t *ip) {
    int rex = 0, n = 0;
    greg_t *flags = &u->uc_mcontext.gregs[REG_EFL];
    if ((ip[0] & 0xf0) == 0x40) rex = ip[n++];
    int r = (rex >> 2 & 1) << 3, x = rex >> 1 & 1, b = rex & 1, w = rex >> 3 & 1;
    const uint8_t *m = ip + n + 1;
    uint64_t at; int64_t s; int32_t d;
    switch (ip[n]) {
    case 0x0f:
        if (m[0] == 0x18 && m[1] >> 6 != 3 && (m[1] >> 3 & 7) <= 3)  // prefetch
            return n + 2 + operand(u, m + 1, x, b, 0, &at, &s, 0);
        if ((m[0] == 0x84 || m[0] == 0x85) && !rex) {
            memcpy(&d, m + 1, 4);
            return 6 + ((*flags >> 6 & 1) == (m[0] == 0x84) ? d : 0);
        }
        return 0;
    case 0x74: case 0x75:
        return rex ? 0 : 2 + ((*flags >> 6 & 1) == (ip[0] == 0x74) ? (int8_t)ip[1] : 0);
    case 0xeb:
        return rex ? 0 : 2 + (int8_t)ip[1];
    case 0x01:  // add r/m64, r64
        if (!w || m[0] >> 6 != 3) return 0;
        *reg(u, (m[0] & 7) | b << 3) = add(*reg(u, (m[0] & 7) | b << 3), *reg(u, (m[0] >> 3 & 7) | r), flags);
        return n + 2;
    case 0x83: case 0x81:  // add or sub (of a negative constant) r/m64, imm
        if (!w || m[0] >> 6 != 3 || (m[0] >> 3 & 7) != 0) return 0;
        if (ip[n] == 0x83) d = (int8_t)m[1]; else memcpy(&d, m + 1, 4);
        *reg(u, (m[0] & 7) | b << 3) = add(*reg(u, (m[0] & 7) | b << 3), (uint64_t)(int64_t)d, flags);
        return n + (ip[n] == 0x83 ? 3 : 6);
    case 0xff:  // dec
        if (!w || m[0] >> 6 != 3 || (m[0] >> 3 & 7) != 1) return 0;
        *reg(u, (m[0] & 7) | b << 3) = dec(*reg(u, (m[0] & 7) | b << 3), flags);
        return n + 2;
    }
    return 0;
}

static const char *check_config(const Config *c) {
    if (c->palette > 1) return "ldtilecfg: palette";
    for (int i = 0; i < 14; i++) if (c->reserved[i]) return "ldtilecfg: reserved bytes are not zero";
    if (c->palette == 0) return 0;
    for (int i = 0; i < 16; i++) {
        if (i >= 8 && (c->colsb[i] || c->rows[i])) return "ldtilecfg: tiles beyond 7";
        if (c->colsb[i] > 64 || c->rows[i] > 16) return "ldtilecfg: tile too large";
        if (!c->colsb[i] != !c->rows[i]) return "ldtilecfg: rows without columns or columns without rows";
    }
    return 0;
}

// One tile instruction: its length, 0 if it is none, -1 if it faults (`*why`).
static int tile(ucontext_t *u, const uint8_t *ip, const char **why) {
    if (ip[0] != 0xc4 || (ip[1] & 0x1f) != 2 || (ip[2] & 0x84) != 0) return 0;  // map 0f38, W0, L0
    int op = ip[3], pp = ip[2] & 3, r = !(ip[1] & 0x80), x = !(ip[1] & 0x40), b = !(ip[1] & 0x20);
    int v = ~(ip[2] >> 3) & 15, m = ip[4], mod = m >> 6, t = (m >> 3) & 7, rm = m & 7, kind, n = 5;
    uint64_t at; int64_t stride;
    if (op != 0x49 && op != 0x4b && op != 0x5c && op != 0x5e) return 0;
#define FAULT(text) return *why = (text), -1
#define CONFIGURED(i, text) if (!S.c.rows[i]) FAULT(text ": tile is not configured")
    if (op == 0x49 && mod != 3) {
        if (t || r || v || (pp != 0 && pp != 1)) return 0;
        n = 4 + operand(u, ip + 4, x, b, 0, &at, &stride, 0);
        if (pp == 0) {
            Config c;
            memcpy(&c, (void *)at, 64);
            const char *e = check_config(&c);
            if (e) FAULT(e);
            memset(&S, 0, sizeof S);
            if (c.palette) S.c = c;
            kind = LDTILECFG;
        } else {
            memcpy((void *)at, &S.c, 64);
            kind = STTILECFG;
        }
    } else if (op == 0x49 && pp == 0 && m == 0xc0 && !r && !v) {
        memset(&S, 0, sizeof S);
        kind = TILERELEASE;
    } else if (op == 0x49) {
        if (pp != 3 || rm || v) return 0;
        if (r) FAULT("tilezero: tile number");
        if (!S.c.palette) FAULT("tilezero: no configuration");
        CONFIGURED(t, "tilezero");
        memset(S.t[t], 0, sizeof S.t[t]);
        S.c.start_row = 0;
        kind = TILEZERO;
    } else if (op == 0x4b) {
        if (mod == 3 || rm != 4 || v || pp == 0) return 0;
        if (r) FAULT("tile load or store: tile number");
        if (!S.c.palette) FAULT("tile load or store: no configuration");
        CONFIGURED(t, "tile load or store");
        if (S.c.start_row >= S.c.rows[t]) FAULT("tile load or store: start_row");
        n = 4 + operand(u, ip + 4, x, b, 1, &at, &stride, 0);
        if (pp == 2) store(t, at, stride); else load(t, at, stride);
        S.c.start_row = 0;
        kind = pp == 2 ? TILESTORE : pp == 3 ? TILELOAD : TILELOADT1;
    } else {
        if (mod != 3) return 0;
        if (op == 0x5c && pp != 2) return 0;
        if (r || b || v > 7) FAULT("product: tile number");
        if (!S.c.palette) FAULT("product: no configuration");
        // C is t, A is rm, B is v
        if (t == rm || t == v || rm == v) FAULT("product: the same tile twice");
        CONFIGURED(t, "product"); CONFIGURED(rm, "product"); CONFIGURED(v, "product");
        const Config *c = &S.c;
        if ((c->colsb[t] | c->colsb[rm] | c->colsb[v]) & 3) FAULT("product: columns are no multiple of 4 bytes");
        if (c->rows[t] != c->rows[rm] || c->colsb[t] != c->colsb[v] || c->colsb[rm] >> 2 != c->rows[v])
            FAULT("product: shapes differ");
        if (op == 0x5c) tdpbf16(t, rm, v), kind = TDPBF16;
        else tdpb(t, rm, v, pp >= 2, pp & 1), kind = TDPB;
        S.c.start_row = 0;
    }
    __atomic_fetch_add(&counts[kind], 1, __ATOMIC_RELAXED);
    return n;
}

static void handler(int sig, siginfo_t *info, void *context) {
    (void)sig; (void)info;
    ucontext_t *u = context;
    _mm_setcsr(0x1f80 | 0x8040);  // exceptions masked, nearest even, FTZ and DAZ; the return restores what was
    const uint8_t *ip = (const uint8_t *)u->uc_mcontext.gregs[REG_RIP];
    const char *why = "unknown instruction";
    __atomic_fetch_add(&signals, 1, __ATOMIC_RELAXED);
    int n = tile(u, ip, &why), skipped = 0;
    if (n <= 0) { die(ip, why); return; }
    do {
        ip += n;
        n = tile(u, ip, &why);
        if (n == 0 && (n = simple(u, ip))) skipped++;
        if (n < 0 && ip[0] == 0xc4) break;  // it faults by itself, and says so then
    } while (n);
    u->uc_mcontext.gregs[REG_RIP] = (greg_t)ip;
    if (skipped) __atomic_fetch_add(&others, skipped, __ATOMIC_RELAXED);
}

__attribute__((constructor)) static void start(void) {
    struct sigaction a;
    memset(&a, 0, sizeof a);
    a.sa_sigaction = handler;
    a.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    sigaction(SIGILL, &a, 0);
}

// Each process adds a line with what it carried out to the file TILES_LOG.
__attribute__((destructor)) static void report(void) {
    uint64_t all = 0;
    for (int i = 0; i < KINDS; i++) all += counts[i];
    const char *log = getenv("TILES_LOG");
    if (!all || !log) return;
    char line[1024];
    int n = snprintf(line, sizeof line, "%lu tile instructions in %lu signals, %lu others:", all, signals, others);
    for (int i = 0; i < KINDS; i++)
        if (counts[i]) n += snprintf(line + n, sizeof line - n, " %s %lu", NAMES[i], counts[i]);
    line[n++] = '\n';
    int file = open(log, O_WRONLY | O_APPEND | O_CREAT, 0644);
    if (file < 0) return;
    ssize_t written = write(file, line, n);
    (void)written;
    close(file);
}
