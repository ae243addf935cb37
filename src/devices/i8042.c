/*
 * The PC/AT keyboard controller (IBM PS/2 Hardware Interface Technical Reference, "Keyboard and
 * Auxiliary Device Controller") and the two devices behind it, as far as probing drivers need them:
 * every command is answered at once, because a driver that gets no answer waits for half a second.
 */
#include "devices/i8042.h"
#include "base/log.h"

#include <stdlib.h>

enum { STS_OBF = BIT(0), STS_SYS = BIT(2), STS_CMD = BIT(3), STS_UNLOCKED = BIT(4), STS_AUX = BIT(5) };
enum {
    CTR_KBD_INT = BIT(0),
    CTR_AUX_INT = BIT(1),
    CTR_SYS = BIT(2),
    CTR_KBD_OFF = BIT(4),
    CTR_AUX_OFF = BIT(5),
    CTR_XLATE = BIT(6)
};
enum { OUT_RESET = BIT(0), OUT_A20 = BIT(1), OUT_KBD_OBF = BIT(4), OUT_AUX_OBF = BIT(5) };
enum { ACK = 0xfa, RESEND = 0xfe };

#define QUEUE 64

struct queue {
    u8 data[QUEUE];
    unsigned head, count;
};

struct i8042 {
    struct board *board;
    struct irq_line irq_kbd, irq_aux;
    void (*a20_changed)(void *opaque, bool on);
    void *a20_opaque;
    u8 ctr;        /* command byte */
    u8 ram[32];    /* internal RAM; byte 0 is the command byte */
    u8 out;        /* data in the output buffer */
    bool obf, obf_aux;
    u8 pending;    /* controller command that waits for a byte at 0x60 */
    bool last_was_command;
    bool a20, port92_a20, port92_reset;
    struct queue kbd, aux;
    u8 kbd_param, aux_param; /* device command that waits for its parameter */
    u8 kbd_set;              /* scan code set */
    bool kbd_scanning, aux_reporting;
    u8 aux_rate, aux_resolution;
};

static bool push(struct queue *q, u8 v)
{
    if (q->count == QUEUE)
        return false;
    q->data[(q->head + q->count++) % QUEUE] = v;
    return true;
}

static u8 pop(struct queue *q)
{
    u8 v = q->data[q->head];
    q->head = (q->head + 1) % QUEUE;
    q->count--;
    return v;
}

/* Scan code set 2 to set 1, which CTR_XLATE asks for (the codes a keyboard has; others pass). */
static u8 translate(u8 code)
{
    static const u8 set1[0x85] = {
        [0x01] = 0x43, [0x03] = 0x3f, [0x04] = 0x3d, [0x05] = 0x3b, [0x06] = 0x3c, [0x07] = 0x58, [0x09] = 0x44,
        [0x0a] = 0x42, [0x0b] = 0x40, [0x0c] = 0x3e, [0x0d] = 0x0f, [0x0e] = 0x29, [0x11] = 0x38, [0x12] = 0x2a,
        [0x14] = 0x1d, [0x15] = 0x10, [0x16] = 0x02, [0x1a] = 0x2c, [0x1b] = 0x1f, [0x1c] = 0x1e, [0x1d] = 0x11,
        [0x1e] = 0x03, [0x1f] = 0x5b, [0x21] = 0x2e, [0x22] = 0x2d, [0x23] = 0x20, [0x24] = 0x12, [0x25] = 0x05,
        [0x26] = 0x04, [0x27] = 0x5c, [0x29] = 0x39, [0x2a] = 0x2f, [0x2b] = 0x21, [0x2c] = 0x14, [0x2d] = 0x13,
        [0x2e] = 0x06, [0x2f] = 0x5d, [0x31] = 0x31, [0x32] = 0x30, [0x33] = 0x23, [0x34] = 0x22, [0x35] = 0x15,
        [0x36] = 0x07, [0x3a] = 0x32, [0x3b] = 0x24, [0x3c] = 0x16, [0x3d] = 0x08, [0x3e] = 0x09, [0x41] = 0x33,
        [0x42] = 0x25, [0x43] = 0x17, [0x44] = 0x18, [0x45] = 0x0b, [0x46] = 0x0a, [0x49] = 0x34, [0x4a] = 0x35,
        [0x4b] = 0x26, [0x4c] = 0x27, [0x4d] = 0x19, [0x4e] = 0x0c, [0x52] = 0x28, [0x54] = 0x1a, [0x55] = 0x0d,
        [0x58] = 0x3a, [0x59] = 0x36, [0x5a] = 0x1c, [0x5b] = 0x1b, [0x5d] = 0x2b, [0x61] = 0x56, [0x66] = 0x0e,
        [0x69] = 0x4f, [0x6b] = 0x4b, [0x6c] = 0x47, [0x70] = 0x52, [0x71] = 0x53, [0x72] = 0x50, [0x73] = 0x4c,
        [0x74] = 0x4d, [0x75] = 0x48, [0x76] = 0x01, [0x77] = 0x45, [0x78] = 0x57, [0x79] = 0x4e, [0x7a] = 0x51,
        [0x7b] = 0x4a, [0x7c] = 0x37, [0x7d] = 0x49, [0x7e] = 0x46, [0x83] = 0x41, [0x84] = 0x54,
    };
    return code < sizeof(set1) && set1[code] ? set1[code] : code;
}

static void update_irq(struct i8042 *k)
{
    irq_set(&k->irq_kbd, k->obf && !k->obf_aux && (k->ctr & CTR_KBD_INT));
    irq_set(&k->irq_aux, k->obf && k->obf_aux && (k->ctr & CTR_AUX_INT));
}

static void output(struct i8042 *k, u8 v, bool aux)
{
    k->out = v;
    k->obf = true;
    k->obf_aux = aux;
    update_irq(k);
}

/* Moves the next waiting byte into the output buffer. */
static void refill(struct i8042 *k)
{
    while (!k->obf) {
        if (k->kbd.count && !(k->ctr & CTR_KBD_OFF)) {
            u8 v = pop(&k->kbd);
            if (k->ctr & CTR_XLATE) {
                /* The break prefix F0 becomes bit 7 of the code after it. */
                if (v == 0xf0 && k->kbd.count) {
                    v = translate(pop(&k->kbd)) | 0x80;
                } else {
                    v = translate(v);
                }
            }
            output(k, v, false);
        } else if (k->aux.count && !(k->ctr & CTR_AUX_OFF)) {
            output(k, pop(&k->aux), true);
        } else {
            break;
        }
    }
}

bool i8042_key(struct i8042 *k, const u8 *codes, unsigned count)
{
    if (!k->kbd_scanning || count > QUEUE - k->kbd.count)
        return false;
    for (unsigned i = 0; i < count; i++)
        push(&k->kbd, codes[i]);
    refill(k);
    return true;
}

/* ---- the keyboard ---- */

static void keyboard_defaults(struct i8042 *k)
{
    k->kbd_set = 2;
    k->kbd_param = 0;
}

static void keyboard(struct i8042 *k, u8 v)
{
    struct queue *q = &k->kbd;
    u8 command = k->kbd_param;
    k->kbd_param = 0;
    switch (command) {
    case 0xed: case 0xf3: /* LEDs, typematic rate */
        push(q, ACK);
        return;
    case 0xf0: /* scan code set; 0 asks for the present one */
        push(q, ACK);
        if (v == 0)
            push(q, k->kbd_set);
        else if (v <= 3)
            k->kbd_set = v;
        return;
    }
    switch (v) {
    case 0xed: case 0xf0: case 0xf3:
        k->kbd_param = v;
        push(q, ACK);
        break;
    case 0xee:
        push(q, 0xee);
        break;
    case 0xf2:
        push(q, ACK);
        push(q, 0xab);
        push(q, 0x83);
        break;
    case 0xf4:
    case 0xf5:
        k->kbd_scanning = v == 0xf4;
        push(q, ACK);
        break;
    case 0xf6:
        keyboard_defaults(k);
        k->kbd_scanning = true;
        push(q, ACK);
        break;
    case 0xf7: case 0xf8: case 0xf9: case 0xfa:
        push(q, ACK);
        break;
    case 0xff:
        q->count = 0;
        keyboard_defaults(k);
        k->kbd_scanning = true;
        push(q, ACK);
        push(q, 0xaa);
        break;
    default:
        push(q, RESEND);
    }
}

/* ---- the mouse ---- */

static void mouse_defaults(struct i8042 *k)
{
    k->aux_param = 0;
    k->aux_rate = 100;
    k->aux_resolution = 2;
    k->aux_reporting = false;
}

static void mouse(struct i8042 *k, u8 v)
{
    struct queue *q = &k->aux;
    u8 command = k->aux_param;
    k->aux_param = 0;
    if (command == 0xf3 || command == 0xe8) {
        *(command == 0xf3 ? &k->aux_rate : &k->aux_resolution) = v;
        push(q, ACK);
        return;
    }
    switch (v) {
    case 0xf3: case 0xe8:
        k->aux_param = v;
        push(q, ACK);
        break;
    case 0xe6: case 0xe7: case 0xea: case 0xf0:
        push(q, ACK);
        break;
    case 0xe9:
        push(q, ACK);
        push(q, k->aux_reporting ? 0x20 : 0);
        push(q, k->aux_resolution);
        push(q, k->aux_rate);
        break;
    case 0xeb: /* a packet: nothing moved */
        push(q, ACK);
        push(q, 0x08);
        push(q, 0);
        push(q, 0);
        break;
    case 0xf2:
        push(q, ACK);
        push(q, 0x00);
        break;
    case 0xf4: case 0xf5:
        k->aux_reporting = v == 0xf4;
        push(q, ACK);
        break;
    case 0xf6:
        mouse_defaults(k);
        push(q, ACK);
        break;
    case 0xff:
        q->count = 0;
        mouse_defaults(k);
        push(q, ACK);
        push(q, 0xaa);
        push(q, 0x00);
        break;
    default:
        push(q, RESEND);
    }
}

/* ---- the controller ---- */

static void set_a20(struct i8042 *k)
{
    bool on = k->a20 || k->port92_a20;
    log_at(device, "A20 %s", on ? "on" : "off");
    if (k->a20_changed)
        k->a20_changed(k->a20_opaque, on);
}

static void reset_machine(struct i8042 *k)
{
    log_at(device, "8042: processor reset");
    k->board->request_reset(k->board);
}

static void write_output_port(struct i8042 *k, u8 v)
{
    if (k->a20 != !!(v & OUT_A20)) {
        k->a20 = v & OUT_A20;
        set_a20(k);
    }
    if (!(v & OUT_RESET))
        reset_machine(k);
}

static void command(struct i8042 *k, u8 v)
{
    k->pending = 0;
    k->last_was_command = true;
    if (v >= 0x20 && v < 0x40) { /* read internal RAM */
        output(k, v == 0x20 ? k->ctr : k->ram[v & 0x1f], false);
        return;
    }
    switch (v) {
    case 0xa7:
        k->ctr |= CTR_AUX_OFF;
        break;
    case 0xa8:
        k->ctr &= ~CTR_AUX_OFF;
        break;
    case 0xa9: /* auxiliary interface test: no fault */
    case 0xab: /* keyboard interface test: no fault */
        output(k, 0x00, false);
        break;
    case 0xaa: /* self test */
        k->ctr |= CTR_SYS;
        output(k, 0x55, false);
        break;
    case 0xad:
        k->ctr |= CTR_KBD_OFF;
        break;
    case 0xae:
        k->ctr &= ~CTR_KBD_OFF;
        break;
    case 0xc0: /* input port: keyboard not locked */
        output(k, 0x80, false);
        break;
    case 0xd0: /* output port */
        output(k, OUT_RESET | (k->a20 || k->port92_a20 ? OUT_A20 : 0) |
                      (k->obf ? (k->obf_aux ? OUT_AUX_OBF : OUT_KBD_OBF) : 0), false);
        break;
    case 0xd1: case 0xd2: case 0xd3: case 0xd4:
        k->pending = v;
        break;
    case 0xdd:
    case 0xdf:
        k->a20 = v == 0xdf;
        set_a20(k);
        break;
    default:
        if (v >= 0x60 && v < 0x80)
            k->pending = v;
        else if (v >= 0xf0 && !(v & OUT_RESET)) /* pulse output port bits: bit 0 low resets */
            reset_machine(k);
    }
    refill(k);
    update_irq(k);
}

static void data(struct i8042 *k, u8 v)
{
    u8 to = k->pending;
    k->pending = 0;
    k->last_was_command = false;
    if (to == 0x60)
        k->ctr = v & 0x7f;
    else if (to > 0x60 && to < 0x80)
        k->ram[to & 0x1f] = v;
    else if (to == 0xd1)
        write_output_port(k, v);
    else if (to == 0xd2)
        output(k, v, false);
    else if (to == 0xd3)
        output(k, v, true);
    else if (to == 0xd4)
        mouse(k, v);
    else {
        k->ctr &= ~CTR_KBD_OFF; /* talking to the keyboard enables its interface */
        keyboard(k, v);
    }
    refill(k);
    update_irq(k);
}

static u64 read_data(void *opaque, u64 off, unsigned size)
{
    struct i8042 *k = opaque;
    u8 v = k->out; /* an empty buffer still holds its last byte */
    if (k->obf) {
        k->obf = false;
        update_irq(k); /* the line falls between two bytes: an edge for each */
        refill(k);
    }
    return v;
}

static u64 read_status(void *opaque, u64 off, unsigned size)
{
    struct i8042 *k = opaque;
    return (k->obf ? STS_OBF : 0) | (k->ctr & CTR_SYS ? STS_SYS : 0) | (k->last_was_command ? STS_CMD : 0) |
           STS_UNLOCKED | (k->obf && k->obf_aux ? STS_AUX : 0);
}

static void write_data(void *opaque, u64 off, u64 v, unsigned size) { data(opaque, (u8)v); }
static void write_command(void *opaque, u64 off, u64 v, unsigned size) { command(opaque, (u8)v); }

static u64 read_92(void *opaque, u64 off, unsigned size)
{
    struct i8042 *k = opaque;
    return (k->port92_a20 ? BIT(1) : 0) | (k->port92_reset ? BIT(0) : 0);
}

/* System control port A: bit 1 is A20, a rising bit 0 resets the processor. */
static void write_92(void *opaque, u64 off, u64 v, unsigned size)
{
    struct i8042 *k = opaque;
    if (k->port92_a20 != !!(v & BIT(1))) {
        k->port92_a20 = v & BIT(1);
        set_a20(k);
    }
    bool rising = (v & BIT(0)) && !k->port92_reset;
    k->port92_reset = v & BIT(0);
    if (rising)
        reset_machine(k);
}

static const struct io_ops data_ops = {read_data, write_data};
static const struct io_ops command_ops = {read_status, write_command};
static const struct io_ops port92_ops = {read_92, write_92};

void i8042_reset(struct i8042 *k)
{
    /* The state after the self test that any firmware has run. */
    k->ctr = CTR_SYS | CTR_XLATE | CTR_KBD_INT;
    memset(k->ram, 0, sizeof(k->ram));
    k->out = k->pending = 0;
    k->obf = k->obf_aux = k->last_was_command = false;
    k->a20 = k->port92_a20 = true; /* handed over open, as every loader expects */
    k->port92_reset = false;
    k->kbd = k->aux = (struct queue){0};
    keyboard_defaults(k);
    k->kbd_scanning = true;
    mouse_defaults(k);
    update_irq(k);
    set_a20(k);
}

struct i8042 *i8042_new(struct board *b, void (*a20)(void *opaque, bool on), void *opaque, struct error *err)
{
    struct i8042 *k = device_alloc(sizeof(*k));
    k->board = b;
    k->a20_changed = a20;
    k->a20_opaque = opaque;
    k->irq_kbd = b->irq(b, 1);
    k->irq_aux = b->irq(b, 12);
    if (pio_bus_add8(b->pio, 0x60, 1, &data_ops, k, "8042 data", err) ||
        pio_bus_add8(b->pio, 0x64, 1, &command_ops, k, "8042 command", err) ||
        pio_bus_add8(b->pio, 0x92, 1, &port92_ops, k, "port 92", err)) {
        free(k);
        return NULL;
    }
    i8042_reset(k);
    return k;
}

void i8042_free(struct i8042 *k)
{
    if (!k)
        return;
    pio_bus_remove(k->board->pio, 0x60);
    pio_bus_remove(k->board->pio, 0x64);
    pio_bus_remove(k->board->pio, 0x92);
    free(k);
}
