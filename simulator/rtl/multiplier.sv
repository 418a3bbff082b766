// The multiplier of a PE, signed weight by signed or unsigned activation, without faults inside it.
//
// A netlist of gates with the same name and ports takes the place of this file when gates are faulty: bit i of `invert`, `clear`
// and `set` is then of the netlist's fault location i.

module multiplier #(
    parameter int WEIGHT_BITS = 8,
    parameter int ACT_BITS = 8,
    parameter int ACT_SIGNED = 1,
    parameter int LOCATIONS = 1
) (
    input logic [WEIGHT_BITS-1:0] weight,
    input logic [ACT_BITS-1:0] activation,
    input logic [LOCATIONS-1:0] invert,
    input logic [LOCATIONS-1:0] clear,
    input logic [LOCATIONS-1:0] set,
    output logic [WEIGHT_BITS+ACT_BITS-1:0] product
);

  localparam int PRODUCT_BITS = WEIGHT_BITS + ACT_BITS;

  // The low bits of the product of the extended operands are the product, whatever the signs.
  wire activation_sign = (ACT_SIGNED != 0) & activation[ACT_BITS-1];
  wire [PRODUCT_BITS-1:0] weight_extended = {{ACT_BITS{weight[WEIGHT_BITS-1]}}, weight};
  wire [PRODUCT_BITS-1:0] activation_extended = {{WEIGHT_BITS{activation_sign}}, activation};
  assign product = weight_extended * activation_extended;

  // There are no gates to be faulty.
  wire unused = &{1'b0, invert, clear, set};

endmodule
